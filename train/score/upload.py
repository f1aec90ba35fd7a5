"""The table of pictures, truths and answers at Weights & Biases, and the scores, beside the run's own numbers."""

import base64
import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from train.config_schema import Config
from train.score.metrics import is_right, percentage_error
from train.score.report import Shown
from train.score.scores import Score
from train.tracking import Tracker

MOST_ROWS = 200


def upload_table(
    run: Path, config: Config, fields: Mapping[str, str], samples: Sequence[Shown], scores: Sequence[Score]
) -> None:
    """Add table and scores to the run's record, if the run has one; W&B's troubles are said and end nothing.

    samples: those with pictures are sent, the first MOST_ROWS of them.
    """
    if not (run / "wandb_id").is_file():
        return
    # A table's pictures wait here to be sent: in the run's folder, so that it can be moved and synced from anywhere.
    os.environ.setdefault("WANDB_DATA_DIR", str((run / "wandb").absolute()))
    tracker = Tracker(config.wandb, run, run.name, config.model_dump())
    if tracker.run is None:
        return
    try:
        table = answers_table(fields, [one for one in samples if one.thumbnails][:MOST_ROWS])
        for name, value in score_numbers(scores).items():
            tracker.run.summary[name] = value
        tracker.run.log({"evaluation/predictions": table})
    except Exception as error:
        tracker.give_up(error)
    tracker.best_model()
    tracker.finish()


def answers_table(fields: Mapping[str, str], samples: Sequence[Shown]) -> Any:
    """A wandb.Table of samples: picture, where there is one, truths and answers."""
    import wandb

    table = wandb.Table(columns=table_columns(fields))
    for sample in samples:
        caption = f"{sample.key}: {sample.answer}"
        picture = wandb.Image(_opened(sample), caption=caption) if sample.thumbnails else None
        first, *rest = table_row(fields, sample)
        table.add_data(first, picture, *rest)
    return table


def table_columns(fields: Mapping[str, str]) -> list[str | int]:
    """The names of the table's columns."""
    columns: list[str | int] = ["key", "picture", "answer", "logprob"]
    for name, kind in fields.items():
        columns += [f"{name} true", f"{name} said", f"{name} right"]
        if kind == "number":
            columns.append(f"{name} error")
    return columns


def table_row(fields: Mapping[str, str], sample: Shown) -> list[object]:
    """A sample's cells, but for its picture: numbers as predictions.jsonl has them."""
    row: list[object] = [sample.key, sample.answer, round(sample.logprob, 4)]
    for name, kind in fields.items():
        truth, said = sample.truths[name], sample.predicted.get(name)
        row += [truth, said, is_right(kind, truth, said)]
        if kind == "number":
            error = percentage_error(truth, said) if isinstance(truth, float) else math.inf
            row.append(error if math.isfinite(error) else None)
    return row


def score_numbers(scores: Sequence[Score]) -> dict[str, float]:
    """Every score with the ends of its interval and its baseline's, under the names they have at W&B."""
    numbers: dict[str, float] = {}
    for score in scores:
        name = f"evaluation/{score.field}/{score.metric}"
        numbers |= {name: score.score.value, f"{name}/low": score.score.low, f"{name}/high": score.score.high}
        if score.baselines:
            numbers[f"{name}/baseline"] = score.baselines[0].score.value
            numbers[f"{name}/gain_low"] = score.baselines[0].gain.low
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def _opened(sample: Shown) -> Image.Image:
    """A sample's first thumbnail as a picture again."""
    return Image.open(io.BytesIO(base64.b64decode(sample.thumbnails[0].partition(",")[2])))
