"""Two runs on the same samples: the difference of every score, paired, with its interval."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.schema import UserError
from train.score.card import SCORES_FILE, read_scores
from train.score.fields import read_predictions
from train.score.metrics import METRICS
from train.score.scores import Answers, Estimate, Truth, points, rows_of, shown
from train.score.split import Split


class CompareError(UserError):
    """Two evaluations that cannot be compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One score of two runs."""

    label: str
    unit: str
    n: int
    first: Estimate
    second: Estimate
    gain: Estimate
    """Of the second over the first; positive is better, also where less is better."""

    @property
    def verdict(self) -> str:
        """What the interval of the gain says of the second."""
        return "better" if self.gain.low > 0 else "worse" if self.gain.high < 0 else "no difference shown"


def compare_runs(first: Path, second: Path) -> list[Difference]:
    """Compare the newest evaluations of two runs.

    Raises CompareError where one was not evaluated, or they answered for other samples.
    """
    ours, theirs = _evaluation(first), _evaluation(second)
    for what in ("split", "samples", "fields"):
        one, other = ours.get(what), theirs.get(what)
        if one is None or one != other:
            raise CompareError(f"{first} was evaluated with {what} {one}, {second} with {other}; evaluate both alike")
    said = [read_predictions(run / "evaluation/predictions.jsonl") for run in (first, second)]
    split = Split(Path(theirs["shards"]), theirs["split"])
    truths = list(split.truths(range(min(len(split), len(said[1])))))
    for run, predictions in zip((first, second), said, strict=True):
        if [one.key for one in predictions] != [truth.key for truth in truths]:
            raise CompareError(f"{run}/evaluation has answers for other samples than {split.shards}/{split.name}")
    before, after = ([prediction.fields for prediction in predictions] for predictions in said)
    return differences(split.parser.fields, truths, before, after)


def differences(
    fields: Mapping[str, str],
    truths: Sequence[Truth],
    first: Sequence[Answers],
    second: Sequence[Answers],
    seed: int = 0,
) -> list[Difference]:
    """The differences of all scores of two models that answered for the same samples, in their order."""
    found = []
    for field, kind in fields.items():
        for metric in METRICS[kind]:
            rows = rows_of(metric, field, kind, truths, seed)
            if rows is None:
                continue
            one, other = (rows.measure([said[row].get(field) for row in rows.chosen]) for said in (first, second))
            found.append(
                Difference(
                    label=f"{field}: {metric.label}",
                    unit=metric.unit,
                    n=len(rows.chosen),
                    first=rows.estimate(one),
                    second=rows.estimate(other),
                    gain=rows.gain(other, over=one),
                )
            )
    return found


def comparison_table(first: Path, second: Path, found: Sequence[Difference]) -> str:
    """The differences as lines for a terminal."""
    lines = [("score", first.name, second.name, f"gain of {second.name}", "95 % interval", "")]
    for one in found:
        gain = one.gain
        lines.append(
            (
                one.label,
                shown(one.first.value, one.unit),
                shown(one.second.value, one.unit),
                points(gain.value, one.unit),
                f"{points(gain.low, one.unit)} … {points(gain.high, one.unit)}",
                one.verdict,
            )
        )
    return columns(lines)


def columns(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells in columns of one width each."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _evaluation(run: Path) -> dict[str, Any]:
    found = read_scores(run)
    if not found:
        file = run / "evaluation" / SCORES_FILE
        raise CompareError(f"{run} was not evaluated: there is no {file}; run: python -m train.evaluate {run}")
    return found
