"""What may go wrong in a step and is answered there: numbers that are not finite, and memory that runs out."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.schema import UserError
from train.config_schema import Config
from train.distributed import World, marked
from train.lines import LineFile, cut_lines
from train.loss import count_labels
from train.pipeline.batch import Batch

SKIPPED = "skipped.jsonl"
KEYS_NAMED = 20


class NotFinite(UserError):
    """Too many steps in a row whose loss or gradient was not finite."""


class OutOfMemory(UserError):
    """A step does not fit into memory."""


class Skips:
    """The steps that changed no weight because loss or gradient was not finite, in `skipped.jsonl` of the run's folder.

    Every rank has one and calls it alike; rank 0 writes. A line for each pack: step, pack, loss and keys; `loss` is
    null where it was not finite, and a pack with a finite one was in the same step as the culprit.
    """

    def __init__(self, folder: Path, world: World, *, most: int, step: int) -> None:
        """
        folder: the run's. most: in a row; one more ends the run. step: optimizer steps done.
        """
        self._path = folder / SKIPPED
        self._world = world
        self._most = most
        self._row = 0
        world.from_first(lambda: cut_lines(self._path, step))

    def applied(self) -> None:
        """A step changed the weights."""
        self._row = 0

    def add(self, step: int, batches: Sequence[Batch], losses: Sequence[float], checkpoint: Path | None) -> str:
        """Record a step that was skipped; collective. Returns a line for a person.

        batches, losses: this rank's packs and their summed losses.
        Raises NotFinite, on every rank, after too many in a row.
        """
        self._row += 1
        mine = [
            {
                "step": step,
                "pack": batch.number,
                "loss": loss if math.isfinite(loss) else None,
                "keys": list(batch.keys),
            }
            for batch, loss in zip(batches, losses, strict=True)
            if batch.keys
        ]
        every = [line for lines in self._world.gather_objects(mine) for line in lines]
        every.sort(key=lambda line: line["pack"])
        if self._world.first:
            file = LineFile(self._path)
            for line in every:
                file.add(line)
            file.close()
        culprits = [line for line in every if line["loss"] is None] or every
        keys = [key for line in culprits for key in line["keys"]]
        named = ", ".join(map(repr, keys[:KEYS_NAMED])) + (", …" if len(keys) > KEYS_NAMED else "")
        what = "the loss" if any(line["loss"] is None for line in every) else "the gradient"
        text = f"step {step} is skipped: {what} of the samples {named} is not finite ({self._path.name})"
        if self._row > self._most:
            error = NotFinite(
                f"{text}; {self._row} steps in a row, optim.max_skipped allows {self._most}; the newest whole "
                f"checkpoint is {checkpoint}: look at these samples, lower optim.lr or optim.grad_clip, and start "
                "another run by --run NAME"
            )
            raise marked(error, self._world.first)
        return text


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on an accelerator or on the host."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def explain_memory(error: BaseException, batch: Batch | None, config: Config, where: str) -> OutOfMemory:
    """The message: what was computed, of what shape, and the settings that make it smaller.

    batch: the pack, None where it happened in the optimizer's step. where: which rank was doing what.
    """
    shape = ""
    if batch is not None:
        shape = json.dumps(shape_of(batch)).replace('"', "")[1:-1]
        shape = f" of pack {batch.number} ({shape})"
    settings = config.model
    help_ = []
    if not settings.checkpoint_decoder:
        help_.append("model.checkpoint_decoder=true")
    if not settings.checkpoint_vision:
        help_.append("model.checkpoint_vision=true")
    help_.append(f"data.pack_length below {config.data.pack_length}")
    help_.append(f"model.crops_per_chunk below {settings.crops_per_chunk}")
    help_.append(f"model.labels_per_chunk below {settings.labels_per_chunk}")
    help_.append("a smaller model.num_crops")
    if not settings.checkpoint_offload:
        help_.append("model.checkpoint_offload=true")
    if config.tune.method == "full":
        help_.append("tune.method=lora")
    help_.append("deepspeed=ds_configs/zero3_offload.json")
    said = str(error).partition("\n")[0]
    return OutOfMemory(
        f"out of memory in {where}{shape}: {said}\nany of these needs less: {'; '.join(help_)}. "
        "`train/main.py --dry-run` says what fits; keys that decide what is computed go with another run (--run NAME)"
    )


def shape_of(batch: Batch) -> dict[str, Any]:
    """What of a pack decides how much memory it takes."""
    return {
        "tokens": len(batch.input_ids),
        "samples": len(batch.keys),
        "longest sample": max((int(b - a) for a, b in zip(batch.cu_seqlens, batch.cu_seqlens[1:], strict=False))),
        "supervised tokens": count_labels(batch.labels),
        "pictures": len(batch.grids),
        "crops": len(batch.crops),
        "crop chunks": batch.crop_chunks,
        "label chunks": batch.label_chunks,
    }
