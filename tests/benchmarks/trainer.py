"""What the training loop costs beside the engine's bare calls, and how long saves hold it up.

    python -m tests.benchmarks.trainer [--pairs 5] [--steps 4] [--saves 4]

One training in a process of its own, on one rank. In turns: some steps of the loop (loader, agreement, metrics,
console, heartbeat), then forward, backward and step of the engine on the same batches, prepared. Then the loop again
with a checkpoint every few steps: what each held it up, as a share of 50 steps.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("WANDB_MODE", "disabled")

from tests.benchmarks.figures import Figure, command, of_rounds
from tests.conftest import ROOT
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


def watch(training: Training, pairs: int, steps: int, saves: int) -> None:
    """In place of a training's `go`: what was found as a line of JSON, the last; then this process ends."""
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
    loops, engines, tokens = [], [], []
    for _ in range(pairs):
        prepared.clear()
        loops.append(timed(lambda: [training.train_step() for _ in range(steps)]))
        engines.append(timed(lambda: [bare(training, 0, batches) for batches in prepared]))
        tokens.append(sum(int(batch.cu_seqlens[-1]) for batches in prepared for batch in batches))
    training.next_batches = plain  # type: ignore[method-assign]
    training.checkpoints.take_blocked()
    held = []
    for _ in range(saves):
        training.checkpoints.save(training.done, None, training.stopping.state())
        held.append(training.checkpoints.take_blocked())
        for _ in range(SAVED_EVERY):
            training.train_step()
            held[-1] += training.checkpoints.take_blocked()
    training.heart.stop()
    size = training.engine.checkpoint_bytes() / 1e6
    print(json.dumps({"loops": loops, "engines": engines, "tokens": tokens, "held": held, "save_mb": size}))
    sys.stdout.flush()
    os._exit(0)


def train(folder: Path, options: argparse.Namespace) -> int:
    """Start a training whose `go` is `watch`; returns the exit code of one that fails before."""
    shards = small_shards(folder / "shards", shards=4, per_shard=64, splits=("train",))
    make(folder / "model", shards.folder, SIZES, seed=0)
    Training.go = lambda self: watch(self, options.pairs, options.steps, options.saves)  # type: ignore[assignment,method-assign]
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
    return entry.main([part for one in settings for part in ("--set", one)])


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = argparse.ArgumentParser(prog="python -m tests.benchmarks.trainer", description=__doc__)
    arguments.add_argument("--pairs", type=int, default=5)
    arguments.add_argument("--steps", type=int, default=4)
    arguments.add_argument("--saves", type=int, default=4)
    arguments.add_argument("--watched", type=Path, help=argparse.SUPPRESS)
    return arguments


def measure(options: argparse.Namespace) -> list[Figure]:
    """Tokens a second of the loop beside the engine's, and how long a save holds it up."""
    given = [part for name in ("pairs", "steps", "saves") for part in (f"--{name}", str(getattr(options, name)))]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        started = [sys.executable, "-m", "tests.benchmarks.trainer", "--watched", folder, *given]
        said = subprocess.run(started, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT).stdout.splitlines()
    print("\n".join(said[:-1]))
    return figures_of(json.loads(said[-1]), options.steps)


def figures_of(found: dict[str, Any], steps: int) -> list[Figure]:
    """Print what was found, and make figures of it."""
    walls, cpus = (
        [engine[clock] / loop[clock] for loop, engine in zip(found["loops"], found["engines"], strict=True)]
        for clock in (0, 1)
    )
    step_s = statistics.median(loop[0] / steps for loop in found["loops"])
    print(f"steps of {step_s:.2f} s; {len(walls)} pairs of {steps} steps, in turns")
    print(f"tokens a second of the loop against bare calls: {statistics.median(walls):.1%} (CPU: ", end="")
    print(f"{statistics.median(cpus):.1%}); pairs: {', '.join(f'{wall:.1%}' for wall in walls)}")
    blocked = statistics.median(found["held"])
    share = blocked / (PER_SAVE * step_s)
    print(f"a save of {found['save_mb']:.0f} MB holds the loop up for {blocked:.3f} s: {share:.2%} of ", end="")
    print(f"{PER_SAVE} steps; saves: {', '.join(f'{one:.3f}' for one in found['held'])} s")
    rates = {
        (way, clock): [tokens / taken[clock] for tokens, taken in zip(found["tokens"], found[way], strict=True)]
        for way in ("loops", "engines")
        for clock in (0, 1)
    }
    figures = [
        of_rounds(
            f"training loop, one rank, by {name}",
            rates["loops", clock],
            "tokens/s",
            baseline=("engine's bare calls", rates["engines", clock]),
            limit=("engine's bare calls", rates["engines", clock]),
        )
        for clock, name in enumerate(("wall clock", "CPU"))
    ]
    waits = of_rounds("a save holds the loop up", found["held"], "s", higher_is_better=False)
    return [*figures, waits]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    options = parser().parse_args(arguments)
    return train(options.watched, options) if options.watched else command(parser(), measure, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
