"""Answer a held-out split, score the answers and write the report: `python -m train.evaluate RUN`.

Writes RUN/evaluation/predictions.jsonl, predictions-shuffled.jsonl, scores.json and RUN/report.html.
"""

import sys
from pathlib import Path

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import json
import os
import time

# As in train.predict, and before torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data.images import open_picture
from data.schema import UserError
from data.whole import write_whole
from train.loading import is_run, load_run
from train.material import shards_folder
from train.predict import CONTROLS, positive, predict_split, quiet
from train.score.card import SCORES_FILE
from train.score.facts import Facts, run_facts
from train.score.fields import Prediction, write_predictions
from train.score.report import Report, Shown, render, shown_keys, thumbnail, verdicts
from train.score.scores import Score, Truth, percent, score_split
from train.score.split import Split
from train.score.upload import upload_table

FORMAT_VERSION = 1
MOST_PICTURES = 4  # of one sample, in the report


class EvaluationError(UserError):
    """There is no run to evaluate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What came out, and where it lies."""

    split: Split
    facts: Facts
    truths: list[Truth]
    predictions: list[Prediction]
    scores: list[Score]
    report: Path


def evaluate(
    run: Path,
    *,
    split: str | None = None,
    checkpoint: str = "best",
    controls: Sequence[str] = CONTROLS,
    limit: int | None = None,
    batch_size: int = 64,
    max_new_tokens: int = 96,
) -> Evaluation:
    """Predict, score and report; the files are each written whole.

    run: folder of a training run. split: None for test, or validation where there is no test split.
    checkpoint: see loading.choose_checkpoint. controls: what is predicted again with wrong pictures.
    limit: only the first so many samples.
    Raises UserError for no run, no whole checkpoint, no such split, or nothing to score.
    """
    if not is_run(run):
        raise EvaluationError(f"{run} is not the folder of a run: it has no config.yaml; runs are under runs/")
    loaded = load_run(run, checkpoint)
    assert loaded.origin is not None
    config = loaded.origin.config
    opened = Split(shards_folder(config), split)
    asked: dict[str, Any] = {"batch_size": batch_size, "max_new_tokens": max_new_tokens, "limit": limit}
    folder = run / "evaluation"
    predictions = predict_split(loaded, opened, **asked)
    write_predictions(folder / "predictions.jsonl", predictions)
    by_control = {}
    if int((opened.index.picture_counts[: len(predictions)] > 0).sum()) < 2:
        controls = ()  # no pictures to exchange
    for control in controls:
        by_control[control] = predict_split(loaded, opened, control=control, **asked)
        write_predictions(folder / f"predictions-{control}.jsonl", by_control[control])
    truths = list(opened.truths(range(len(predictions))))
    training = [truth.values for truth in Split(opened.shards, config.data.train).truths()]
    scores = score_split(
        opened.parser.fields,
        truths,
        [prediction.fields for prediction in predictions],
        training,
        {control: [prediction.fields for prediction in answers] for control, answers in by_control.items()},
    )
    facts = run_facts(loaded.origin)
    write_whole(folder / SCORES_FILE, scores_json(facts, opened, len(truths), scores).encode())
    shown = _shown(opened, truths, predictions)
    report = _report(facts, opened, opened.name != config.data.train, scores, shown)
    write_whole(run / "report.html", render(report).encode())
    upload_table(run, config, opened.parser.fields, shown)
    return Evaluation(
        split=opened,
        facts=facts,
        truths=truths,
        predictions=predictions,
        scores=scores,
        report=run / "report.html",
    )


def scores_json(facts: Facts, split: Split, samples: int, scores: Sequence[Score]) -> str:
    """The text of scores.json: numbers that are not finite are null."""
    record = {
        "format_version": FORMAT_VERSION,
        "run": facts.run.name,
        "checkpoint": facts.checkpoint.name,
        "step": facts.step,
        "shards": str(split.shards),
        "split": split.name,
        "samples": samples,
        "fields": split.parser.fields,
        "scores": [score.to_json() for score in scores],
        "verdicts": [{"good": good, "text": text} for good, text in verdicts(scores)],
    }
    return json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _shown(split: Split, truths: Sequence[Truth], predictions: Sequence[Prediction]) -> list[Shown]:
    """The samples for the report, with pictures where it shows them."""

    def sample(number: int, thumbnails: tuple[str, ...]) -> Shown:
        truth, prediction = truths[number], predictions[number]
        return Shown(
            key=truth.key,
            thumbnails=thumbnails,
            truths=truth.values,
            predicted=prediction.fields,
            answer=prediction.answer,
            logprob=prediction.logprob,
        )

    bare = [sample(number, ()) for number in range(len(truths))]
    wanted = shown_keys(split.parser.fields, bare)
    return [
        sample(number, tuple(thumbnail(open_picture(data)) for data in split.read(number)[1][:MOST_PICTURES]))
        if truths[number].key in wanted
        else bare[number]
        for number in range(len(truths))
    ]


def _report(facts: Facts, split: Split, held_out: bool, scores: Sequence[Score], shown: Sequence[Shown]) -> Report:
    return Report(
        run=facts.run.name,
        split=split.name,
        held_out=held_out,
        date=time.strftime("%Y-%m-%d"),
        model=facts.model,
        data=facts.data,
        fields=split.parser.fields,
        scores=scores,
        samples=shown,
        splits=facts.splits,
        rejected=facts.rejected,
        curve=facts.curve,
        config=facts.config,
        versions=facts.versions,
        commands=facts.commands,
    )


def score_table(scores: Sequence[Score]) -> str:
    """The scores as lines for a terminal."""
    lines = [("score", "model", "95 % interval", "baseline", "shuffled", "better than baseline")]
    for score in scores:
        base = score.baselines[0] if score.baselines else None
        shuffled = next((control for control in score.controls if control.name == "shuffled"), None)
        lines.append(
            (
                score.label,
                percent(score.score.value),
                f"{percent(score.score.low)} … {percent(score.score.high)}",
                f"{percent(base.score.value)} ({base.name})" if base else "–",
                percent(shuffled.score.value) if shuffled else "–",
                "–" if base is None else "yes" if base.better else "not shown",
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m train.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of a training run")
    parser.add_argument("--split", help="default: test, else validation")
    parser.add_argument("--checkpoint", default="best", help="best (default), newest, or a folder")
    parser.add_argument(
        "--control",
        choices=(*CONTROLS, "none"),
        help="predict again with wrong pictures: shuffled (the default), or none to leave that out",
    )
    parser.add_argument("--limit", type=positive, help="only the first so many samples")
    parser.add_argument("--batch-size", type=positive, default=64)
    parser.add_argument("--max-new-tokens", type=positive, default=96)
    options = parser.parse_args(arguments)
    quiet()
    try:
        result = evaluate(
            options.run,
            split=options.split,
            checkpoint=options.checkpoint,
            controls=() if options.control == "none" else CONTROLS,
            limit=options.limit,
            batch_size=options.batch_size,
            max_new_tokens=options.max_new_tokens,
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(result.predictions)} samples of {result.split.shards}/{result.split.name}, step {result.facts.step}")
    print(score_table(result.scores))
    for good, sentence in verdicts(result.scores):
        print(f"{'✓' if good else '✗'} {sentence}")
    print(f"report: {result.report}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
