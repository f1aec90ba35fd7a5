"""The same global batches on any ranks, packed or alone, by every way of training: started once for each rank."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.factories.ranks import join
from tests.factories.small_models import SIZES, sample
from train.config_schema import Config
from train.deepspeed_config import compose, read
from train.distributed import World
from train.loss import backward_scale, count_labels, mean_loss
from train.pipeline.batch import IGNORED, Batch, Encoded, assemble

GRIDS: tuple[list[tuple[int, int]], ...] = ([(1, 2)], [], [(1, 1), (2, 2)], [(2, 1)], [(1, 1)], [])
ALONE = 2
"""The global batch whose supervised tokens are all one sample's, and so on one rank."""
RATE = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to train."""

    method: str = "full"
    stage: int = 3
    packed: bool = True
    checkpointing: bool = False
    resumed: bool = False
    """Half of the steps by one engine, the others by a new one that loads the first one's checkpoint."""
    steps: int = 20
    rate: float = RATE

    @property
    def name(self) -> str:
        """As a folder and in tables."""
        parts = [self.method, f"zero{self.stage}", "packed" if self.packed else "alone"]
        more = [name for name in ("checkpointing", "resumed") if getattr(self, name)]
        return "-".join([*parts, *more])

    def config(self) -> Config:
        """The run's settings."""
        model = {
            "precision": "fp32",
            "attention": "sdpa",
            "checkpoint_decoder": self.checkpointing,
            "checkpoint_vision": self.checkpointing,
        }
        return Config.model_validate(
            {
                "model": model,
                "tune": {"method": self.method, "lora": {"rank": 4, "alpha": 8}},
                "optim": {"lr": self.rate, "schedule": "constant", "weight_decay": 0.01},
                "deepspeed": f"ds_configs/zero{self.stage}.json",
            }
        )


def global_batch(step: int, packed: bool) -> list[Batch]:
    """The packs of a global batch: six samples, by twos or each alone."""
    samples = []
    for number, grids in enumerate(GRIDS):
        made = sample(100 * step + number, 4 + 3 * number, grids, answer=3 + number)
        labels = made["labels"].numpy()
        if step == ALONE and number:
            labels = np.full_like(labels, IGNORED)
        samples.append(
            Encoded(
                key=f"{step}-{number}",
                input_ids=made["input_ids"].numpy(),
                labels=labels,
                crops=made["crops"].numpy(),
                grids=(made["image_sizes"] // SIZES.crop_size).numpy(),
            )
        )
    size = 2 if packed else 1
    return [lay_out(samples[at : at + size], at // size) for at in range(0, len(samples), size)]


def lay_out(samples: list[Encoded], number: int) -> Batch:
    """A pack; none of any samples makes an empty one. All have as many chunks, as a plan gives a micro-step's."""
    empty = np.zeros((0, 3, SIZES.crop_size, SIZES.crop_size), np.uint8)
    crops = np.concatenate([empty, *(one.crops for one in samples)])
    return assemble(samples, crops=crops, crop_chunks=2, label_chunks=1, number=number)


def dealt(step: int, packed: bool, world: World) -> tuple[list[Batch], int]:
    """One rank's packs, as many on each, and the supervised tokens of all ranks'."""
    every = global_batch(step, packed)
    labels = sum(count_labels(batch.labels) for batch in every)
    mine = every[world.rank :: world.size]
    missing = -(-len(every) // world.size) - len(mine)
    return mine + [lay_out([], len(every) + number) for number in range(missing)], labels


def train(way: Way, folder: Path, out: Path, world: World) -> dict[str, Any]:
    """Train by one way; checkpoints of the first and of the last step lie in `out`."""
    from train.engine import Engine, load_model
    from train.heartbeat import Heart
    from train.saving import Saver

    config = way.config()
    composed = compose(config, read(config), world.size)
    import torch

    def engine_of() -> Engine:
        torch.manual_seed(0)  # LoRA's first values
        return Engine(load_model(config, folder, composed, world), config, composed, world)

    engine = engine_of()
    saver = Saver(out, world, background=False, heart=Heart(world, out, 1.0))
    losses, norms = [], []
    half = way.steps // 2 - 1 if way.resumed else -1
    for step in range(way.steps):
        batches, labels = dealt(step, way.packed, world)
        sums = [float(engine.train_pack(batch, step, backward_scale(world.size, labels))) for batch in batches]
        norms.append(engine.step(way.rate))
        losses.append(mean_loss(world.gather_floats(sums), labels))
        if step in (0, half, way.steps - 1):
            manifest = engine.manifest(step=step + 1, plan="", base={}, validation=None)
            saver.begin(manifest, engine.slices(), engine.checkpoint_bytes())
            saved = saver.settle()
            if step == half:
                engine = engine_of()
                engine.load(saved.folder)
    return {"losses": losses, "norms": norms}


def main() -> None:
    """On each rank."""
    ways, folder, out = json.loads(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
    world = join()
    for values in ways:
        way = Way(**values)
        found = train(way, folder, out / way.name, world)
        if world.first:
            (out / way.name / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
