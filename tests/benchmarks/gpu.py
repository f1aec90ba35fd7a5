"""The published architecture at full size in training on a GPU: tokens and pictures a second, utilisation, memory.

    python -m tests.benchmarks.gpu [--method full lora] [--tokens 1024 … 131072] [--crops 4 16] [--kernels best]

Random weights, made on the device; nothing is downloaded. Full fine-tuning and LoRA through the trainer's engine (flash
attention over packs, AdamW), each pack full of samples with a picture; beside it, on the same model and samples, the
published way: one sample at a time, each picture padded to num_crops + 1 crops that all go through the tower, sdpa,
float32 logits at every position. Plain operations, Liger's kernels and compiled ones are tried first and the quickest
taken; activations are recomputed where memory asks for it, on both sides. Operations are counted as `train.flops` says
(recomputation not) and held against the rate of bf16 matrix products measured in this run, and the data sheet's.

`--small` takes a small model of the same layers on any device, to try the program; its figures mean nothing.
"""

import argparse
import gc
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from tests.benchmarks.figures import Figure, Unavailable, command
from tests.benchmarks.full_size import (
    GRIDS,
    alone,
    computed_peak,
    config_of,
    full_config,
    make_engine,
    pack_of,
    samples,
    small_config,
    timed,
    train_step,
)
from tests.benchmarks.gpu_figures import gpu_figures
from tests.benchmarks.gpu_tables import tell, tell_published
from tests.benchmarks.gpu_ways import WAYS, must_recompute, quickest, set_recomputing, try_ways, use_way
from tests.benchmarks.kernel_times import kernel_times
from tests.benchmarks.one_at_a_time import as_published
from train.config_schema import Config
from train.engine import Engine
from train.flops import peak_flops, seen_crops
from train.preflight_rates import matrix_rate

TOKENS = (1024, 4096, 16384, 65536, 131072)
CROPS = (4, 16)
SMALL_TOKENS = (128, 512)
ROOM_FOR_ALL = 80e9
"""Bytes of a GPU that take weights, gradients, fp32 copies and moments of 4.15 B parameters, and activations."""
TUNE: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "frozen": {"method": "full", "freeze": ["vision"]},
    "lora": {"method": "lora"},
}
GIB = 2**30


def config_for(method: str, options: argparse.Namespace, memory: float) -> Config:
    """A run's settings; where the GPU is too small for the optimizer, that is kept in the host's memory."""
    fits = memory >= ROOM_FOR_ALL or method == "lora" or options.small
    on_gpu = torch.cuda.is_available()
    return config_of(
        model={
            "precision": "bf16" if on_gpu else "fp32",
            "crops_per_chunk": options.crops_per_chunk,
        },
        tune=TUNE[method],
        deepspeed="ds_configs/zero2.json" if fits else "ds_configs/zero3_offload.json",
    )


def measure_packs(
    engine: Engine, way: str, options: argparse.Namespace, architecture: Any, memory: float
) -> list[dict[str, Any]]:
    """The cases of one method, each as plain values; one that does not fit says so.

    way: the kernels of packs; the published way runs by plain operations.
    """
    found = []
    for crops in options.crops:
        for tokens in options.tokens:
            for whole in (False, True) if tokens == max(options.tokens) and tokens > 65536 else (False,):
                try:
                    chosen = samples(architecture, crops, tokens, whole)
                except ValueError:
                    continue
                case = {"tokens": tokens, "crops": crops, "samples": len(chosen), "way": "packs"}
                case |= recomputing(engine, chosen, architecture, options, memory)
                case |= guarded(lambda chosen=chosen: packed(engine, chosen, options), engine, options)
                found.append(case)
        least = next(tokens for tokens in options.tokens if tokens >= options.published_tokens)
        chosen = samples(architecture, crops, least)
        case = {"tokens": least, "crops": crops, "samples": len(chosen), "way": "published"}
        case |= recomputing(engine, chosen[:1], architecture, options, memory)
        del case["computed_gib"]
        if engine.zero_stage == 3:
            found.append(case | {"failed": "needs whole weights (ZeRO-2)"})
            continue
        use_way(engine, "plain")
        case |= guarded(lambda chosen=chosen, crops=crops: published(engine, chosen, crops, options), engine, options)
        use_way(engine, way)
        found.append(case)
    return found


def recomputing(
    engine: Engine, chosen: Sequence[Any], architecture: Any, options: argparse.Namespace, memory: float
) -> dict[str, Any]:
    """Set whether the model recomputes activations for these samples in a pack; says so, with the memory computed."""
    batch, device = pack_of(engine.config, chosen), engine.world.device
    wanted = options.recompute == "always"
    if options.recompute == "where needed":
        wanted = device.type != "cuda" or must_recompute(engine, batch, architecture, memory)
    set_recomputing(engine, wanted)
    model = engine.config.model.model_copy(update={"checkpoint_decoder": wanted, "checkpoint_vision": wanted})
    config = engine.config.model_copy(update={"model": model})
    return {"recomputed": wanted, "computed_gib": computed_peak(config, batch, architecture, device) / GIB}


def try_kernels(engine: Engine, options: argparse.Namespace, architecture: Any) -> dict[str, float | str]:
    """Seconds of a step on a small pack by each of the kernels in question, or why they cannot be had."""
    batch = pack_of(engine.config, samples(architecture, min(options.crops), options.published_tokens))
    return try_ways(
        engine, list(WAYS) if options.kernels == "best" else [options.kernels], partial(train_step, engine, batch)
    )


def guarded(work: Callable[[], dict[str, Any]], engine: Engine, options: argparse.Namespace) -> dict[str, Any]:
    """What a measurement gave, with the peak of memory; or that memory ran out, recomputing activations too."""
    device = engine.world.device
    values: dict[str, Any] = {"failed": "out of memory"}
    for again in (False, True):
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        if again:
            set_recomputing(engine, True)
        try:
            values = work() | ({"recomputed": True} if again else {})
            break
        except torch.OutOfMemoryError:
            if options.recompute == "never":
                break
    if device.type == "cuda":
        values["peak_gib"] = torch.cuda.max_memory_allocated(device) / GIB
    return values


def packed(engine: Engine, chosen: Sequence[Any], options: argparse.Namespace) -> dict[str, Any]:
    """Steps of one pack."""
    batch = pack_of(engine.config, chosen)
    step = partial(train_step, engine, batch)
    rounds = timed(step, engine.world.device, options.seconds, options.steps)
    looked = kernel_times(step, engine.world.device) if options.profile else None
    return {
        "seconds": statistics.median(rounds),
        "rounds": rounds,
        "pictures": len(batch.grids),
        "tower_crops": seen_crops(batch),
        "operations": engine.arithmetic.of_packs([batch]),
        "explained": looked and looked.explained,
        "kinds": looked and looked.by_kind,
        "kernels": looked and looked.largest,
    }


def published(engine: Engine, chosen: Sequence[Any], crops: int, options: argparse.Namespace) -> dict[str, Any]:
    """Steps over the same samples, one at a time."""
    rows, columns = GRIDS[crops]

    def step() -> None:
        as_published(engine, chosen, (rows, columns), crops)
        engine.step(1e-6)

    rounds = timed(step, engine.world.device, options.seconds, options.steps)
    batch = pack_of(engine.config, chosen)
    return {
        "seconds": statistics.median(rounds),
        "rounds": rounds,
        "pictures": len(batch.grids),
        "operations": engine.arithmetic.of_packs([batch]),
    }


def one_method(options: argparse.Namespace) -> dict[str, Any]:
    """All cases of one method, in this process."""
    world = alone()
    on_gpu = world.device.type == "cuda"
    memory = torch.cuda.get_device_properties(world.device).total_memory if on_gpu else 0.0
    rate = matrix_rate(world.device)
    architecture = small_config() if options.small else full_config()
    config = config_for(options.method[0], options, memory)
    engine = make_engine(architecture, config, world)
    weights = torch.cuda.memory_allocated(world.device) if on_gpu else 0
    tried = try_kernels(engine, options, architecture)
    way = quickest(tried)
    use_way(engine, way)
    found = {
        "method": options.method[0],
        "device": torch.cuda.get_device_name(world.device) if on_gpu else "cpu",
        "matrix_rate": rate,
        "data_sheet": peak_flops(torch.cuda.get_device_name(world.device), "bf16") if on_gpu else None,
        "deepspeed": config.deepspeed,
        "weights_gib": weights / GIB if on_gpu else None,
        "tried": tried,
        "kernels": way,
        "cases": measure_packs(engine, way, options, architecture, memory),
    }
    if world.size == 1 and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return found


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--method", nargs="+", choices=list(TUNE), default=list(TUNE))
    made.add_argument("--tokens", nargs="+", type=int, help=f"tokens of a pack (default: {TOKENS})")
    made.add_argument("--crops", nargs="+", type=int, choices=sorted(GRIDS), default=list(CROPS))
    made.add_argument("--published-tokens", type=int, help="samples of the published way fill a pack of so many")
    made.add_argument("--seconds", type=float, default=6.0, help="of each measurement (default: 6)")
    made.add_argument("--steps", type=int, default=2, help="least steps of each measurement (default: 2)")
    made.add_argument("--crops-per-chunk", type=int, default=64, help="crops through the tower at once (default: 64)")
    made.add_argument("--kernels", choices=("best", *WAYS), default="best", help="default: the quickest one here")
    made.add_argument(
        "--recompute",
        choices=("where needed", "always", "never"),
        default="where needed",
        help="activations in the backward pass (default: where they would not fit into memory)",
    )
    made.add_argument("--no-profile", dest="profile", action="store_false", help="leave the kernels out")
    made.add_argument("--small", action="store_true", help="a small model, on any device")
    made.add_argument("--in-this-process", action="store_true", help=argparse.SUPPRESS)
    return made


def completed(options: argparse.Namespace) -> argparse.Namespace:
    """The options with what depends on others, where it was not given."""
    options.tokens = options.tokens or list(SMALL_TOKENS if options.small else TOKENS)
    options.published_tokens = options.published_tokens or (min(options.tokens) if options.small else 4096)
    return options


def each_method(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every method in a process of its own, so that none finds what another left on the device."""
    numbers = {name: getattr(options, name) for name in ("published_tokens", "seconds", "steps", "crops_per_chunk")}
    given = [part for name, value in numbers.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    given += ["--tokens", *map(str, options.tokens), "--crops", *map(str, options.crops)]
    given += ["--kernels", options.kernels, "--recompute", options.recompute, *(["--small"] if options.small else [])]
    given += [] if options.profile else ["--no-profile"]
    found = []
    for method in options.method:
        started = [sys.executable, "-m", "tests.benchmarks.gpu", *given, "--method", method, "--in-this-process"]
        done = subprocess.run(started, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{method}: ended with {done.returncode}")
        found.append(json.loads(done.stdout.splitlines()[-1]))
    return found


def measure(options: argparse.Namespace) -> list[Figure]:
    """Pictures a second and peak memory of each method's packs, beside the published way and this GPU's matrix rate."""
    if not torch.cuda.is_available() and not options.small:
        raise Unavailable("there is no GPU here (--small tries the program on a CPU)")
    found = each_method(completed(options))
    for one in found:
        tell(one)
    if not options.small:
        tell_published(found)
    return [figure for one in found for figure in gpu_figures(one)]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    options = parser().parse_args(arguments)
    if options.in_this_process:
        print(json.dumps(one_method(completed(options))), flush=True)
        return 0
    return command(parser(), measure, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
