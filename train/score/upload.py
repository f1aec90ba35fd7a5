"""The table of pictures, truths and answers at Weights & Biases, beside the run's own numbers."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from train.config_schema import Config
from train.score.metrics import is_right
from train.score.report import Shown
from train.tracking import Tracker

MOST_ROWS = 200


def upload_table(run: Path, config: Config, fields: Mapping[str, str], samples: Sequence[Shown]) -> None:
    """Add the table to the run's record, if the run has one; W&B's troubles are said and end nothing.

    samples: those with pictures are sent, the first MOST_ROWS of them.
    """
    if not (run / "wandb_id").is_file():
        return
    tracker = Tracker(config.wandb, run, run.name, config.model_dump())
    if tracker.run is None:
        return
    try:
        import wandb

        columns: list[str | int] = ["key", "picture", "answer", "logprob"]
        for name in fields:
            columns += [f"{name} true", f"{name} said", f"{name} right"]
        table = wandb.Table(columns=columns)
        pictures = []
        for sample in [one for one in samples if one.thumbnails][:MOST_ROWS]:
            picture = wandb.Image(_opened(sample), caption=f"{sample.key}: {sample.answer}")
            pictures.append(picture)
            row: list[object] = [sample.key, picture, sample.answer, sample.logprob]
            for name, kind in fields.items():
                truth, said = sample.truths[name], sample.predicted.get(name)
                row += [truth, said, is_right(kind, truth, said)]
            table.add_data(*row)
        # The pictures once more on their own: offline, a table's pictures are kept outside the run's folder.
        tracker.run.log({"evaluation/predictions": table, "evaluation/pictures": pictures})
    except Exception as error:
        tracker.give_up(error)
    tracker.finish()


def _opened(sample: Shown) -> Image.Image:
    """A sample's first thumbnail as a picture again."""
    return Image.open(io.BytesIO(base64.b64decode(sample.thumbnails[0].partition(",")[2])))
