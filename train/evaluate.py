"""Answer a held-out split, score the answers and write the report.

    python -m train.evaluate RUN
    deepspeed train/evaluate.py RUN                  the same, on many devices
    python -m train.evaluate --compare RUN OTHER     two runs that were evaluated, score by score

Writes RUN/evaluation/predictions.jsonl, predictions-CONTROL.jsonl, scores.json and RUN/report.html.
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
from dataclasses import asdict, dataclass
from typing import Any

from data.images import open_picture
from data.schema import UserError
from data.whole import write_whole
from train.distributed import World
from train.loading import Loaded, is_run, load_run
from train.material import shards_folder
from train.predict import gather_ranks, positive, predict_split_into, quiet, run_on_ranks
from train.questions import CONTROLS
from train.score.card import SCORES_FILE
from train.score.comparing import columns, compare_runs, comparison_table
from train.score.facts import Facts, Origin, run_facts
from train.score.fields import FieldValue, Prediction, each_prediction, read_predictions
from train.score.report import PICTURE_BYTES, Report, Shown, render, shown_keys, thumbnail, verdicts
from train.score.scores import Score, Truth, finite, score_split, shown
from train.score.slices import Slice, slice_scores
from train.score.split import Split
from train.score.upload import upload_table
from train.tracking import BASE

FORMAT_VERSION = 1
PICTURES_OF_ONE = 4  # sample, in the report


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
    base: bool = False,
    limit: int | None = None,
    batch_size: int = 64,
    max_new_tokens: int = 96,
    world: World | None = None,
) -> Evaluation | None:
    """Predict, score and report; the files are each written whole, and predictions go on where they were cut short.

    run: folder of a training run. split: None for test, or validation where there is no test split.
    checkpoint: see loading.choose_checkpoint. controls: what is predicted again with wrong pictures or none.
    base: ask the model that training started from too. limit: only the first so many samples.
    world: the ranks that predict together; rank 0 scores, the others return None.
    Raises UserError for no run, no whole checkpoint, no such split, or nothing to score.
    """
    if not is_run(run):
        raise EvaluationError(f"{run} is not the folder of a run: it has no config.yaml; runs are under runs/")
    world = world or gather_ranks()
    loaded = load_run(run, checkpoint, device=world.device)
    assert loaded.origin is not None
    config = loaded.origin.config
    opened = Split(shards_folder(config), split)
    asked: dict[str, Any] = {"batch_size": batch_size, "max_new_tokens": max_new_tokens, "limit": limit}
    folder = run / "evaluation"
    begun = time.monotonic()
    gone_on = predict_split_into(folder / "predictions.jsonl", loaded, opened, world, **asked)
    seconds = time.monotonic() - begun
    count = min(len(opened), limit or len(opened))
    if int((opened.index.picture_counts[:count] > 0).sum()) < 2:
        controls = ()  # no pictures to exchange
    for control in controls:
        predict_split_into(folder / f"predictions-{control}.jsonl", loaded, opened, world, control=control, **asked)
    if base:
        before = _base_of(loaded, world)
        predict_split_into(folder / "predictions-base.jsonl", before, opened, world, **asked)
    if not world.first:
        return None
    return _score(run, loaded.origin, opened, controls, base, None if gone_on else count / seconds)


def _base_of(loaded: Loaded, world: World) -> Loaded:
    """The model that training started from, asked in the trained one's way."""
    before = load_run(loaded.folder, device=world.device)
    assert loaded.processor.chat_template is not None
    before.processor.chat_template = loaded.processor.chat_template
    before.processor.num_crops = loaded.processor.num_crops
    return before


def _score(
    run: Path, origin: Origin, opened: Split, controls: Sequence[str], base: bool, rate: float | None
) -> Evaluation:
    """Score what was predicted and write scores and report.

    rate: samples that were answered a second; None where an earlier start has answered some.
    """
    folder = run / "evaluation"
    predictions = read_predictions(folder / "predictions.jsonl")

    def said(name: str) -> list[dict[str, FieldValue | None]]:
        return [one.fields for one in each_prediction(folder / f"predictions-{name}.jsonl")]

    truths = list(opened.truths(range(len(predictions))))
    training = [truth.values for truth in Split(opened.shards, origin.config.data.train).truths()]
    answers = [prediction.fields for prediction in predictions]
    fields = opened.parser.fields
    scores = score_split(
        fields,
        truths,
        answers,
        training,
        {control: said(control) for control in controls},
        {BASE: said("base")} if base else {},
    )
    slices = slice_scores(fields, truths, answers, training)
    facts = run_facts(origin)
    write_whole(folder / SCORES_FILE, scores_json(facts, opened, len(truths), scores, slices).encode())
    samples = _shown(opened, truths, predictions)
    held_out = opened.name != origin.config.data.train
    report = _report(facts, opened, held_out, scores, slices, samples, rate)
    write_whole(run / "report.html", render(report).encode())
    upload_table(run, origin.config, fields, samples, scores)
    return Evaluation(
        split=opened,
        facts=facts,
        truths=truths,
        predictions=predictions,
        scores=scores,
        report=run / "report.html",
    )


def scores_json(facts: Facts, split: Split, samples: int, scores: Sequence[Score], slices: Sequence[Slice] = ()) -> str:
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
        "slices": [finite(asdict(one)) for one in slices],
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
    numbers = {truth.key: number for number, truth in enumerate(truths)}
    used = 0
    for key in shown_keys(split.parser.fields, bare):
        number = numbers[key]
        pictures = tuple(thumbnail(open_picture(data)) for data in split.read(number)[1][:PICTURES_OF_ONE])
        used += sum(map(len, pictures))
        if used > PICTURE_BYTES:
            break
        bare[number] = sample(number, pictures)
    return bare


def _report(
    facts: Facts,
    split: Split,
    held_out: bool,
    scores: Sequence[Score],
    slices: Sequence[Slice],
    shown: Sequence[Shown],
    rate: float | None,
) -> Report:
    return Report(
        run=facts.run.name,
        split=split.name,
        held_out=held_out,
        date=time.strftime("%Y-%m-%d"),
        model=facts.model,
        data=facts.data,
        fields=split.parser.fields,
        scores=scores,
        slices=slices,
        samples=shown,
        splits=facts.splits,
        rejected=facts.rejected,
        curve=facts.curve,
        course=facts.course | ({} if rate is None else {"answers": f"{rate:,.1f} samples a second"}),
        hashes=facts.hashes,
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
                shown(score.score.value, score.unit),
                f"{shown(score.score.low, score.unit)} … {shown(score.score.high, score.unit)}",
                f"{shown(base.score.value, score.unit)} ({base.name})" if base else "–",
                shown(shuffled.score.value, score.unit) if shuffled else "–",
                "–" if base is None else "yes" if base.better else "not shown",
            )
        )
    return columns(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m train.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, nargs="?", help="folder of a training run")
    parser.add_argument(
        "--compare", type=Path, nargs=2, metavar=("RUN", "OTHER"), help="the gain of the second over the first"
    )
    parser.add_argument("--split", help="default: test, else validation")
    parser.add_argument("--checkpoint", default="best", help="best (default), newest, or a folder")
    parser.add_argument(
        "--control",
        action="append",
        choices=(*CONTROLS, "none"),
        help="predict again with others' pictures, white ones or none; may be repeated (default: all three)",
    )
    parser.add_argument("--base", action="store_true", help="ask the model that training started from too")
    parser.add_argument("--limit", type=positive, help="only the first so many samples")
    parser.add_argument("--batch-size", type=positive, default=64)
    parser.add_argument("--max-new-tokens", type=positive, default=96)
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    options = parser.parse_args(arguments)
    if (options.run is None) == (options.compare is None):
        parser.error("name one run, or two of them after --compare")
    quiet()
    return run_on_ranks(lambda world: _run(options, world))


def _run(options: argparse.Namespace, world: World) -> None:
    if options.compare:
        first, second = options.compare
        if world.first:
            print(comparison_table(first, second, compare_runs(first, second)))
        return
    result = evaluate(
        options.run,
        split=options.split,
        checkpoint=options.checkpoint,
        controls=[name for name in options.control or CONTROLS if name != "none"],
        base=options.base,
        limit=options.limit,
        batch_size=options.batch_size,
        max_new_tokens=options.max_new_tokens,
        world=world,
    )
    if result is None:
        return
    print(f"{len(result.predictions)} samples of {result.split.shards}/{result.split.name}, step {result.facts.step}")
    print(score_table(result.scores))
    for good, sentence in verdicts(result.scores):
        print(f"{'✓' if good else '✗'} {sentence}")
    print(f"report: {result.report}")


if __name__ == "__main__":
    sys.exit(main())
