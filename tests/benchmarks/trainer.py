"""What the training loop costs beside the engine's bare calls, and how long saves hold it up.

    python -m tests.benchmarks.trainer [--pairs 5] [--steps 4] [--saves 4]

One training in this process, on one rank. In turns: some steps of the loop (loader, agreement, metrics, console,
heartbeat), then forward, backward and step of the engine on the same batches, prepared. Then the loop again with a
checkpoint every few steps: what each held it up, as a share of 50 steps.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("WANDB_MODE", "disabled")

from tests.factories.small_shards import small_shards
from train import main as entry
from train.loop import Training
from train.loss import backward_scale, count_labels
from train.model.tiny import Sizes, make
from train.pipeline.batch import Batch

SIZES = Sizes(
    hidden=256, layers=3, vision_hidden=64, vision_layers=4, crop_size=28, patch_size=7, num_crops=4, vocab=340
)
WARM_UP = 2
SAVED_EVERY = 3
PER_SAVE = 50
"""Steps between two saves of a training, for the share."""


def kept(batch: Batch) -> Batch:
    """A batch in memory of its own: the loader's is used again."""
    return replace(batch, **{name: array.copy() for name, array in batch.arrays().items()})


def bare(training: Training, step: int, batches: list[Batch]) -> None:
    """A step by the engine's own calls."""
    engine = training.engine.deepspeed
    scale = backward_scale(1, sum(count_labels(batch.labels) for batch in batches))
    for batch in batches:
        loss = engine(**training.engine.inputs(batch)).loss
        engine.backward(loss * scale, scale_wrt_gas=False)
    engine.step()


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the wall and of this process's CPU."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def measure(training: Training, pairs: int, steps: int, saves: int) -> str:
    """In place of a training's `go`: the figures, printed."""
    prepared: list[list[Batch]] = []
    plain = training.next_batches

    def noted() -> Any:
        batches, problem = plain()
        prepared.append([kept(batch) for batch in batches])
        return batches, problem

    training.heart.start()
    for _ in range(WARM_UP):
        training.train_step()
    training.next_batches = noted  # type: ignore[method-assign]
    walls, cpus, step_s = [], [], []
    for _ in range(pairs):
        prepared.clear()
        loop = timed(lambda: [training.train_step() for _ in range(steps)])
        engine = timed(lambda: [bare(training, 0, batches) for batches in prepared])
        walls.append(engine[0] / loop[0])
        cpus.append(engine[1] / loop[1])
        step_s.append(loop[0] / steps)
    training.next_batches = plain  # type: ignore[method-assign]
    middle = statistics.median(step_s)
    print(f"steps of {middle:.2f} s; {pairs} pairs of {steps} steps, in turns")
    print(f"tokens a second of the loop against bare calls: {statistics.median(walls):.1%} (CPU: ", end="")
    print(f"{statistics.median(cpus):.1%}); pairs: {', '.join(f'{wall:.1%}' for wall in walls)}")
    training.checkpoints.take_blocked()
    held = []
    for _ in range(saves):
        training.checkpoints.save(training.done, None, training.stopping.state())
        held.append(training.checkpoints.take_blocked())
        for _ in range(SAVED_EVERY):
            training.train_step()
            held[-1] += training.checkpoints.take_blocked()
    blocked = statistics.median(held)
    size = training.engine.checkpoint_bytes() / 1e6
    print(
        f"a save of {size:.0f} MB holds the loop up for {blocked:.3f} s: {blocked / (PER_SAVE * middle):.2%} of "
        f"{PER_SAVE} steps; saves: {', '.join(f'{one:.3f}' for one in held)} s"
    )
    training.heart.stop()
    sys.stdout.flush()
    os._exit(0)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--saves", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shards = small_shards(folder / "shards", shards=4, per_shard=64, splits=("train",))
        make(folder / "model", shards.folder, SIZES, seed=0)
        training = Training.go
        Training.go = lambda self: measure(self, options.pairs, options.steps, options.saves)  # type: ignore[assignment,method-assign]
        settings = (
            f"model.path={folder}/model",
            "model.precision=fp32",
            "model.checkpoint_decoder=false",
            "model.checkpoint_vision=false",
            f"data.shards={folder}/shards",
            "data.pack_length=512",
            "data.workers=1",
            "batch.global_batch_packs=3",
            "stop={epochs: 1000.0}",
            f"run.folder={folder}/runs",
            "deepspeed=ds_configs/zero3.json",
        )
        try:
            entry.main([part for one in settings for part in ("--set", one)])
        finally:
            Training.go = training  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
