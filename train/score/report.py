"""report.html: one self-contained file that shows what a run learned, how well, and where it is wrong."""

import base64
import hashlib
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from train.score.charts import Line, Point, Whisker, line_chart, scatter_chart, smoothed, whisker_chart
from train.score.fields import FieldValue
from train.score.intervals import FEWEST_GROUPS
from train.score.metrics import PRICE_TOLERANCE, is_right, percentage_error
from train.score.scores import Rival, Score, percent, points, shown
from train.score.slices import Slice

MOST_SAMPLES = 20_000
MOST_PICTURES = 2_000
PICTURE_BYTES = 22_000_000
"""Of all pictures in one report, as they stand in it; the rest of 30 MB is for the samples' texts."""
MOST_LETTERS = 400
THUMBNAIL_SIDE = 112
_MOST_CLASSES = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """One sample as the report shows it."""

    key: str
    thumbnails: tuple[str, ...]  # data: URIs
    truths: Mapping[str, FieldValue | None]
    predicted: Mapping[str, FieldValue | None]
    answer: str
    logprob: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """What a run's metrics.jsonl says of its course: (step, value) pairs."""

    train_loss: Sequence[tuple[float, float]] = ()
    validation_loss: Sequence[tuple[float, float]] = ()
    lr: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All that a report shows."""

    run: str
    split: str
    held_out: bool  # whether the split is another one than was trained on
    date: str
    model: Mapping[str, str]  # name: value lines about model and checkpoint
    data: Mapping[str, str]  # the same about the data
    fields: Mapping[str, str]
    scores: Sequence[Score]
    samples: Sequence[Shown]  # all scored samples in plan order; thumbnails may be missing past MOST_PICTURES
    splits: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    rejected: Mapping[str, int] = field(default_factory=dict)
    curve: Curve = field(default_factory=Curve)
    course: Mapping[str, str] = field(default_factory=dict)  # throughput and memory, in words
    slices: Sequence[Slice] = ()
    hashes: Mapping[str, str] = field(default_factory=dict)
    config: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    commands: Sequence[str] = ()


def thumbnail(picture: Image.Image) -> str:
    """A small JPEG of an upright picture as a data: URI; what is transparent becomes white."""
    picture = picture.copy()
    picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        picture = Image.new("RGBA", layer.size, "white")
        picture.alpha_composite(layer)
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=80, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def shown_keys(fields: Mapping[str, str], samples: Sequence[Shown]) -> list[str]:
    """The keys of the samples whose pictures the report shows: the worst by each number field, and the first ones."""
    keys: dict[str, None] = {}
    for name, kind in fields.items():
        if kind == "number":
            keys |= dict.fromkeys(sample.key for sample, _ in _worst(name, samples))
    keys |= dict.fromkeys(sample.key for sample in samples[:MOST_PICTURES])
    return list(keys)[:MOST_PICTURES]


def render(report: Report) -> str:
    """The whole page. Everything from data or model is escaped; the page's own policy forbids any other source."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, shown=shown, points=points, bytes=_bytes, value=_value)
    numbers = [name for name, kind in report.fields.items() if kind == "number"]
    categories = [name for name, kind in report.fields.items() if kind == "category"]
    return environment.get_template("report.html.j2").render(
        report=report,
        nonce=hashlib.sha256(repr(report.samples).encode()).hexdigest()[:24],
        verdicts=verdicts(report.scores),
        cards=[(score, _whiskers(score)) for score in report.scores],
        charts=_curves(report.curve),
        gallery={
            "fields": list(report.fields),
            "samples": [_row(report.fields, sample) for sample in report.samples[:MOST_SAMPLES]],
        },
        pictured=sum(bool(sample.thumbnails) for sample in report.samples[:MOST_SAMPLES]),
        slices=_slices(report.slices),
        worst=[(name, _worst(name, report.samples)) for name in numbers],
        confusions=[(name, _confusion(name, report.samples)) for name in categories],
        scatters=[(name, _scatter(name, report.samples)) for name in numbers],
        tolerance=PRICE_TOLERANCE,
        infinity=math.inf,
    )


def verdicts(scores: Sequence[Score]) -> list[tuple[bool, str]]:
    """The sentences that matter: (good or not, sentence)."""
    judged = [score for score in scores if score.baselines]
    if not judged:
        return [(False, "There are no baselines to compare with: the training rows have no value of these fields.")]
    if all(math.isinf(gain.low) and math.isinf(gain.high) for score in judged for gain in [score.baselines[0].gain]):
        return [(False, f"Nothing can be shown of fewer than {FEWEST_GROUPS} products: evaluate more of them.")]
    missed = [score.label for score in judged if not score.beats_baseline]
    sentences = [
        (True, f"Better than the baselines that never look at a picture: all {len(judged)} scores.")
        if not missed
        else (False, f"Not shown to be better than a baseline that never looks: {'; '.join(missed)}.")
    ]
    conclusion = "" if missed else ": the answers come from the pictures"
    for name in dict.fromkeys(control.name for score in judged for control in score.controls):
        leaking = [
            score.label for score in judged for control in score.controls if control.name == name and control.better
        ]
        sentences.append(
            (True, f"With {control_name(name)} no score beats its baseline{conclusion}.")
            if not leaking
            else (
                False,
                f"With {control_name(name)} a baseline is still beaten: {'; '.join(leaking)}. Something else leaks.",
            )
        )
    for name in dict.fromkeys(model.name for score in scores for model in score.models):
        gained = [model.better for score in scores for model in score.models if model.name == name]
        sentences.append((all(gained), f"Better than the {name}: {sum(gained)} of {len(gained)} scores."))
    return sentences


def _whiskers(score: Score) -> Markup:
    def row(label: str, style: str, rival: Rival | Score) -> Whisker:
        one = rival.score
        text = shown(one.value, score.unit)
        return Whisker(label=label, style=style, value=one.value, low=one.low, high=one.high, shown=text)

    rows = [row("this model", "model", score)]
    for rival in score.baselines:
        name = rival.name if rival.answer is None else f"{rival.name}: {_value(rival.answer)}"
        rows.append(row(name[:44], "baseline", rival))
    rows += [row(control_name(rival.name), "control", rival) for rival in score.controls]
    rows += [row(rival.name, "baseline", rival) for rival in score.models]
    title = f"{score.label}: model, baselines and controls with 95 % intervals"
    return whisker_chart(rows, title, plain=score.unit != "percent")


def control_name(name: str) -> str:
    """A control in words."""
    return "no picture" if name == "no-picture" else f"pictures {name}"


def _curves(curve: Curve) -> list[tuple[str, Markup]]:
    window = max(1, len(curve.train_loss) // 40)
    losses = line_chart(
        [
            Line(name="raw", label="training loss", points=curve.train_loss),
            Line(name="train", label="training loss, running mean", points=smoothed(curve.train_loss, window)),
            Line(name="validation", label="validation loss", points=curve.validation_loss, dots=True),
        ],
        "Loss over training steps",
    )
    rates = line_chart([Line(name="lr", label="learning rate", points=curve.lr)], "Learning rate over training steps")
    return [(name, chart) for name, chart in (("loss", losses), ("learning rate", rates)) if chart]


def _row(fields: Mapping[str, str], sample: Shown) -> dict[str, Any]:
    """A sample of the gallery: per field the truth, the answer and whether it is right (None: no truth)."""
    row: dict[str, Any] = {"truths": [], "said": [], "right": [], "off": []}
    errors = []
    for name, kind in fields.items():
        truth, predicted = sample.truths[name], sample.predicted.get(name)
        row["truths"].append(_value(truth)[:MOST_LETTERS])
        row["said"].append(None if predicted is None else _value(predicted)[:MOST_LETTERS])
        row["right"].append(None if truth is None else is_right(kind, truth, predicted))
        error = percentage_error(truth, predicted) if kind == "number" and isinstance(truth, float) and truth else None
        row["off"].append("" if error is None or predicted is None else percent(error))
        errors += [] if error is None else [error]
    largest = max(errors, default=0.0)
    return {
        "key": sample.key,
        "pictures": sample.thumbnails,
        **row,
        "unread": None in row["said"],
        "answer": sample.answer[:MOST_LETTERS],
        "sure": round(sample.logprob, 4),
        "error": round(largest, 6) if math.isfinite(largest) else None,
    }


def _slices(slices: Sequence[Slice]) -> list[tuple[str, list[str], list[tuple[str, int, list[Any]]]]]:
    """For each field by which samples are alike: its scores' labels, and a line a group."""
    tables = []
    for by in dict.fromkeys(one.by for one in slices):
        of = [one for one in slices if one.by == by]
        labels = list(dict.fromkeys(label for one in of for label in one.scores))
        lines = [
            (
                one.value,
                one.n,
                [(one.scores[label], one.units[label]) if label in one.scores else None for label in labels],
            )
            for one in of
        ]
        tables.append((by, labels, lines))
    return tables


def _worst(name: str, samples: Sequence[Shown], most: int = 12) -> list[tuple[Shown, float]]:
    """The samples with the largest percentage errors of a number field; answers that could not be read come first."""
    errors = [
        (sample, percentage_error(truth, sample.predicted.get(name)))
        for sample in samples
        if isinstance(truth := sample.truths[name], float) and truth
    ]
    wrong = [
        (sample, error)
        for sample, error in errors
        if not is_right("number", sample.truths[name], sample.predicted.get(name))
    ]
    return sorted(wrong, key=lambda item: -item[1])[:most]


def _confusion(name: str, samples: Sequence[Shown]) -> dict[str, Any]:
    """Counts of true against predicted categories: the commonest ones, the rest together."""
    truths = Counter(str(sample.truths[name]) for sample in samples if sample.truths[name] is not None)
    kept = [category for category, _ in sorted(truths.items(), key=lambda item: (-item[1], item[0]))[:_MOST_CLASSES]]
    counts: Counter[tuple[str, str]] = Counter()
    for sample in samples:
        truth, predicted = sample.truths[name], sample.predicted.get(name)
        if truth is not None:
            row = str(truth) if truth in kept else "(other)"
            column = "(unreadable)" if predicted is None else str(predicted) if predicted in kept else "(other)"
            counts[row, column] += 1
    rows = [*kept, *(["(other)"] if len(truths) > len(kept) else [])]
    columns = [*kept, *[extra for extra in ("(other)", "(unreadable)") if any(key[1] == extra for key in counts)]]
    lines = []
    for row in rows:
        total = sum(counts[row, column] for column in columns)
        cells = [(column, counts[row, column], counts[row, column] / max(total, 1)) for column in columns]
        lines.append((row, total, cells))
    return {"columns": columns, "lines": lines}


def _scatter(name: str, samples: Sequence[Shown], most: int = 1500) -> Markup:
    points = []
    for sample in samples[:most]:
        truth, predicted = sample.truths[name], sample.predicted.get(name)
        if isinstance(truth, float) and isinstance(predicted, float):
            points.append(
                Point(
                    truth=truth,
                    predicted=predicted,
                    right=is_right("number", truth, predicted),
                    label=f"{sample.key}: true {_value(truth)}, predicted {_value(predicted)}",
                )
            )
    return scatter_chart(points, PRICE_TOLERANCE, f"Predicted over true {name}")


def _value(value: FieldValue | None) -> str:
    """A field's value as people read it."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if abs(value) < 0.01 and value:
        return f"{value:.3g}"
    return f"{value:,.2f}".rstrip("0").rstrip(".")


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
