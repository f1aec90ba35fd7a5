"""How many cores keep a GPU fed: training from shards by the real loader, and how long each step waited for data.

    python -m tests.benchmarks.feeding [--workers 1 2 4 8] [--crops 4 16] [--tokens 16384] [--small]

LoRA on the published architecture at full size, which takes pictures quicker than full fine-tuning does. For each
number of crops: what the GPU takes of one pack again and again, what one worker process makes by itself, and training
from shards with some workers. Asked is a wait below 1 % of the time where there are workers enough. `--small` takes a
small model on any device, to try the program.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.figures import Beside, Figure, Unavailable, command
from tests.benchmarks.full_size import (
    alone,
    config_of,
    full_config,
    make_engine,
    small_config,
    timed,
    train_step,
)
from tests.benchmarks.loader import write_shards
from tests.benchmarks.pairs import print_table
from tests.benchmarks.pictures import pictures, tokenizer_file
from tests.conftest import MATERIAL
from tests.factories.plans import published, small
from tests.factories.small_shards import write_tokenizer
from train.engine import Engine
from train.pipeline.batch import Batch
from train.pipeline.loader import Loader
from train.pipeline.opening import open_plan
from train.pipeline.plan import Plan
from train.pipeline.rate import loader_rate

ALLOWED = 0.01
ENOUGH = 1.3
"""Workers for each that would just do, from which on no wait is allowed."""
HEADER = ("crops", "device takes", "one worker makes", "cores for that", "workers", "pictures/s", "waited")


def plan_of(shards: Path, tokenizer: Path, crops: int, options: argparse.Namespace) -> Plan:
    """One pack a step."""
    if options.small:
        settings = small(num_crops=crops, crop_size=28, global_batch_packs=1)
    else:
        settings = published(
            num_crops=crops, pack_length=options.tokens, crops_per_chunk=64, over_long="skip", global_batch_packs=1
        )
    return open_plan(shards, "train", settings, tokenizer_file=tokenizer, cache=shards)


def fed(engine: Engine, plan: Plan, tokenizer: Path, workers: int, seconds: float) -> tuple[float, float]:
    """Pictures a second of training from shards, and the share of the time that it waited; first steps left out."""
    device, seen, waited = engine.world.device, 0, 0.0
    with Loader(plan, tokenizer, rank=0, world=1, start_step=0, end_step=10**9, workers=workers) as loader:
        begun = time.perf_counter()
        for step, batches in loader:
            for batch in batches:
                train_step(engine, batch)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if step < 2:
                begun, seen, waited = time.perf_counter(), 0, 0.0
                continue
            seen += sum(len(batch.grids) for batch in batches)
            waited += loader.latest.waited_s
            if time.perf_counter() - begun >= seconds:
                break
        spent = time.perf_counter() - begun
    return seen / spent, waited / spent


def first_batch(plan: Plan, tokenizer: Path) -> Batch:
    """The first pack, in memory of its own."""
    with Loader(plan, tokenizer, rank=0, world=1, start_step=0, end_step=1, workers=0) as loader:
        _, (batch,) = next(iter(loader))
        return replace(batch, **{name: array.copy() for name, array in batch.arrays().items()})


def measure(options: argparse.Namespace) -> list[Figure]:
    """Print the table; returns its figures."""
    if not torch.cuda.is_available() and not options.small:
        raise Unavailable("needs a GPU")
    world = alone()
    on_gpu = world.device.type == "cuda"
    config = config_of(
        model={"precision": "bf16" if on_gpu else "fp32", "crops_per_chunk": 64},
        tune={"method": "lora"},
        deepspeed="ds_configs/zero2.json",
    )
    engine = make_engine(small_config() if options.small else full_config(), config, world)
    rows, figures = [], []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        chosen = pictures(options.material, options.pictures)
        shards = write_shards(folder / "shards", list(chosen.files), None)
        small_one = folder / "tokenizer.json"
        tokenizer = write_tokenizer(small_one) if options.small else tokenizer_file(options.material, folder)
        for crops in options.crops:
            plan = plan_of(shards, tokenizer, crops, options)
            batch = first_batch(plan, tokenizer)
            spent = statistics.median(timed(partial(train_step, engine, batch), world.device, 3.0, 2))
            takes = len(batch.grids) / spent
            makes = loader_rate(plan, tokenizer, workers=1, seconds=options.seconds).pictures_per_s
            for workers in options.workers:
                rate, share = fed(engine, plan, tokenizer, workers, options.seconds)
                needed = takes / makes
                row = (str(crops), f"{takes:.1f}/s", f"{makes:.1f}/s", f"{needed:.1f}", str(workers), f"{rate:.1f}")
                rows.append((*row, f"{share:.2%}"))
                name = f"{chosen.kind}, {crops} crops, {workers} workers: pictures trained on a second"
                limit = Beside(name="the device on one pack", value=takes, ratio=rate / takes)
                figure = Figure(name=name, value=rate, unit="pictures/s", limit=limit)
                enough = workers >= ENOUGH * needed
                figures.append(figure.asking("waits below 1 % of the time", share < ALLOWED) if enough else figure)
    print_table(HEADER, rows)
    if world.size == 1 and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return figures


def parser() -> argparse.ArgumentParser:
    """The command line."""
    cores = len(os.sched_getaffinity(0))
    made: Any = argparse.ArgumentParser(prog="python -m tests.benchmarks.feeding", description=__doc__)
    made.add_argument("--material", type=Path, default=MATERIAL)
    made.add_argument("--pictures", type=int, default=600, help="in the shards (default: 600)")
    made.add_argument("--crops", nargs="+", type=int, default=[4, 16])
    made.add_argument("--tokens", type=int, default=16384, help="of a pack (default: 16,384)")
    made.add_argument("--workers", nargs="+", type=int, default=[one for one in (1, 2, 4, 8, 16) if one <= cores])
    made.add_argument("--seconds", type=float, default=15.0, help="of each measurement (default: 15)")
    made.add_argument("--small", action="store_true", help="a small model, on any device")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    return command(parser(), measure, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
