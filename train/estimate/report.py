"""The estimate in lines: parameters by part, bytes a rank, what fits where, what to change, how long it takes."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from train.config import ConfigError, load
from train.config_schema import Config
from train.deepspeed_config import read
from train.estimate.loads import usual_load
from train.estimate.memory import KINDS, Estimate, estimate
from train.estimate.setup import PackLoad, Setup
from train.estimate.sizes import ModelSizes

GIB = 2**30
CROPS = (1, 4, 9, 16)
CONTEXT_BYTES = GIB
"""Taken for CUDA's context, kernels and NCCL; not measured."""
SPARE = 1.1
"""Room for gaps that the allocator leaves; not measured."""
UNITS = {"GiB": 2**30, "GB": 10**9, "MiB": 2**20, "MB": 10**6}


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What a training is to run on."""

    nodes: int
    gpus: int
    """Of each node."""
    gpu_memory: int
    """Bytes of each."""

    @property
    def ranks(self) -> int:
        """One a GPU."""
        return self.nodes * self.gpus

    def __str__(self) -> str:
        nodes = f"{self.nodes} nodes of " if self.nodes > 1 else ""
        return f"{nodes}{self.gpus} × {self.gpu_memory / GIB:.0f} GiB"


def parse_memory(text: str) -> int:
    """Bytes of a text like "80GiB", "24GB"; raises ConfigError for another."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(GiB|GB|MiB|MB)", text.strip())
    if not found or not float(found[1]):
        raise ConfigError(f"--gpu-memory {text}: expected a number and a unit, for example 80GiB or 24GB")
    return int(float(found[1]) * UNITS[found[2]])


def on_gpu(found: Estimate) -> int:
    """Bytes that a GPU needs to have for an estimate, with what CUDA and the allocator take."""
    return int(found.peak.total * SPARE) + CONTEXT_BYTES


def gib(size: float) -> str:
    """Bytes as GiB with a digit."""
    return f"{size / GIB:.1f}"


def parameter_lines(setup: Setup) -> Iterator[str]:
    """Parameters by part, adapters apart."""
    totals: dict[str, int] = {}
    trained: dict[str, int] = {}
    for tensor in setup.all_tensors():
        name = "adapters" if tensor.adapter else tensor.part
        totals[name] = totals.get(name, 0) + tensor.numel
        trained[name] = trained.get(name, 0) + (tensor.numel if setup.trains(tensor) else 0)
    yield f"parameters: {sum(totals.values()):,}, of which {sum(trained.values()):,} are trained"
    for name, total in totals.items():
        yield f"  {name:10s} {total:15,}   trained {trained[name]:15,}"


def memory_lines(setup: Setup, load: PackLoad, machine: Machine) -> Iterator[str]:
    """Bytes a rank, by what they are for, with and without checkpointing."""
    yield (
        f"memory a rank, GiB, on {machine} (computed; ZeRO-{setup.zero.stage}, {setup.precision}, packs of "
        f"{load.tokens:,} tokens, {load.labels:,} labels, {load.crops:,} crops):"
    )
    yield f"  {'checkpointing':14s}" + "".join(f"{kind:>13s}" for kind in KINDS) + f"{'peak':>8s}  at        host"
    both = (setup.checkpoint_decoder, setup.checkpoint_vision)
    for wanted in sorted({both, (True, True), (False, False)}, reverse=True):
        other = replace(setup, checkpoint_decoder=wanted[0], checkpoint_vision=wanted[1])
        found = estimate(other, load)
        peak = found.peak
        name = {(True, True): "on", (False, False): "off"}.get(wanted, "in part")
        mark = "*" if wanted == both else " "
        yield (
            f" {mark}{name:14s}"
            + "".join(f"{gib(peak.bytes[kind]):>13s}" for kind in KINDS)
            + f"{gib(peak.total):>8s}  {peak.moment:8s}{gib(found.host):>6s}"
        )


def verdict(found: Estimate, machine: Machine) -> str:
    """What a GPU needs and whether it has it."""
    needed = on_gpu(found)
    return f"{gib(needed):>6s} {'fits' if needed <= machine.gpu_memory else 'NO  '}"


def fitting_lines(sizes: ModelSizes, machine: Machine, folder: Path, ds_folder: Path) -> Iterator[str]:
    """Each recipe with each DeepSpeed file at several num_crops: GiB a GPU needs, and whether it has them."""
    yield f"what fits on {machine}: GiB a GPU, with {gib(CONTEXT_BYTES)} for CUDA and a tenth spare"
    yield f"  {'recipe':20s} {'deepspeed':16s}" + "".join(f"{f'{crops} crops':>13s}" for crops in CROPS) + "   host GiB"
    for path in sorted(folder.glob("*.yaml")):
        recipe = load(path)
        if recipe.model.precision == "fp32":
            continue  # the quickstart's, of a model of its own
        for file in sorted(ds_folder.glob("*.json")):
            if file.stem.endswith("_small"):
                continue
            config = recipe.model_copy(update={"deepspeed": str(file)})
            settings = read(config)
            if config.tune.method == "qlora" and settings["zero_optimization"]["stage"] == 3:
                continue
            setup = Setup.of(config, settings, sizes, machine.ranks)
            all_found = [estimate(setup, usual_load(config, sizes, crops)) for crops in CROPS]
            own = "*" if Path(recipe.deepspeed).stem == file.stem else " "
            cells = "".join(f"  {verdict(found, machine)}" for found in all_found)
            host = gib(max(found.host for found in all_found) * machine.gpus)
            yield f" {own}{path.stem:20s} {file.stem:16s}{cells}   {host:>8s}"


CHANGES: tuple[tuple[str, dict[str, dict[str, Any]]], ...] = (
    (
        "model.checkpoint_decoder=true model.checkpoint_vision=true",
        {"model": {"checkpoint_decoder": True, "checkpoint_vision": True}},
    ),
    ("model.num_crops=4", {"model": {"num_crops": 4}}),
    ("model.labels_per_chunk=256 model.crops_per_chunk=4", {"model": {"labels_per_chunk": 256, "crops_per_chunk": 4}}),
    ("deepspeed=ds_configs/zero3.json", {"": {"deepspeed": "ds_configs/zero3.json"}}),
    ("tune.method=lora", {"tune": {"method": "lora", "freeze": []}}),
    ("deepspeed=ds_configs/zero3_offload.json", {"": {"deepspeed": "ds_configs/zero3_offload.json"}}),
)
"""Each for itself, the cheapest in speed and quality first."""
KEPT = {"model": {"checkpoint_decoder": False, "checkpoint_vision": False, "checkpoint_offload": False}}


def changed(config: Config, change: Mapping[str, Mapping[str, Any]]) -> Config:
    """A configuration with some keys of some sections replaced."""
    sections: dict[str, Any] = {}
    for name, values in change.items():
        if not name:
            sections |= values
            continue
        section = getattr(config, name)
        sections[name] = section.model_copy(update=dict(values))
    return config.model_copy(update=sections)


def room_lines(config: Config, sizes: ModelSizes, load: PackLoad, machine: Machine) -> Iterator[str]:
    """Where checkpointing is on and there is room to keep every activation: what that takes and saves."""
    if not (config.model.checkpoint_decoder or config.model.checkpoint_vision):
        return
    other = changed(config, KEPT)
    needed = on_gpu(estimate(Setup.of(other, read(other), sizes, machine.ranks), load))
    if needed <= machine.gpu_memory:
        share = "a quarter" if config.tune.method == "full" else "a third"
        yield (
            f"  there is room to recompute nothing, which saves about {share} of a step's operations: {gib(needed)} GiB"
            "  --set model.checkpoint_decoder=false --set model.checkpoint_vision=false"
        )


def advice_lines(config: Config, sizes: ModelSizes, load: PackLoad, machine: Machine) -> Iterator[str]:
    """Whether it fits; if not, changes, each for itself, and what they would make of it."""
    settings = read(config)
    now = estimate(Setup.of(config, settings, sizes, machine.ranks), load)
    if on_gpu(now) <= machine.gpu_memory:
        yield f"it fits: {gib(on_gpu(now))} of {gib(machine.gpu_memory)} GiB"
        yield from room_lines(config, sizes, load, machine)
        return
    yield f"it does not fit: {gib(on_gpu(now))} of {gib(machine.gpu_memory)} GiB; each of these for itself makes it"
    for text, change in CHANGES:
        other = changed(config, change)
        packed = load
        if "num_crops" in text:
            packed = usual_load(other, sizes, 4)
        elif "labels_per_chunk" in text:
            packed = replace(
                load,
                crop_chunks=-(-load.crops // other.model.crops_per_chunk),
                label_chunks=max(1, -(-load.labels // other.model.labels_per_chunk)),
            )
        found = estimate(Setup.of(other, read(other), sizes, machine.ranks), packed)
        if found.peak.total < now.peak.total:
            host = f", {gib(found.host * machine.gpus)} GiB of host memory a node" if found.host else ""
            yield f"  {verdict(found, machine)}  --set {text.replace(' ', ' --set ')}{host}"
