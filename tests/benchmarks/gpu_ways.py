"""Which fused kernels pay on this GPU, and whether activations have to be recomputed: tried before it is measured."""

from collections.abc import Callable, Mapping, Sequence

import torch

from tests.benchmarks.full_size import computed_peak, inner_model, timed
from train.engine import Engine
from train.model.configuration import Phi3VConfig
from train.model.kernels import choose_kernels, use_kernels, why_no_compiler, why_no_liger
from train.pipeline.batch import Batch

WAYS = {
    "plain": {"liger": False, "compiled": False},
    "liger": {"liger": True, "compiled": False},
    "compile": {"liger": False, "compiled": True},
    "both": {"liger": True, "compiled": True},
}
TIMES = 3
"""Steps that each of them is timed for."""
ROOM = 0.85
"""Of the device's memory, what a step may take by computation to go without recomputing."""


def obstacle(way: str, device: torch.device) -> str | None:
    """Why kernels cannot be had on a device, or None where they can."""
    wanted = WAYS[way]
    if wanted["liger"] and (found := why_no_liger(device)):
        return found
    return why_no_compiler(device) if wanted["compiled"] else None


def use_way(engine: Engine, way: str) -> None:
    """Have the engine's model run by these kernels from now on."""
    use_kernels(inner_model(engine), choose_kernels(**WAYS[way]))


def try_ways(engine: Engine, ways: Sequence[str], step: Callable[[], object]) -> dict[str, float | str]:
    """Seconds of a step by each kind of kernels, or why it could not be had."""
    found: dict[str, float | str] = {}
    for way in ways:
        if why := obstacle(way, engine.world.device):
            found[way] = why
            continue
        try:
            use_way(engine, way)
            step()  # the first one compiles
            found[way] = min(timed(step, engine.world.device, 0.0, TIMES))
        except Exception as error:  # a compiler or a kernel that fails here is a finding, and no reason to end
            found[way] = f"{type(error).__name__}: {error}".splitlines()[0][:120]
    return found


def quickest(tried: Mapping[str, float | str]) -> str:
    """The kernels with the least seconds; raises RuntimeError where none could be had."""
    timed = {way: spent for way, spent in tried.items() if isinstance(spent, float)}
    if not timed:
        raise RuntimeError(f"no kernels run here: {dict(tried)}")
    return min(timed, key=lambda way: timed[way])


def set_recomputing(engine: Engine, wanted: bool) -> None:
    """Recompute activations in the backward pass, or keep them."""
    inner_model(engine).set_checkpointing(decoder=wanted, vision=wanted)


def must_recompute(engine: Engine, batch: Batch, architecture: Phi3VConfig, memory: float) -> bool:
    """Whether keeping every activation would take more than there is room for, as a dry run computes it."""
    kept = engine.config.model.model_copy(update={"checkpoint_decoder": False, "checkpoint_vision": False})
    config = engine.config.model_copy(update={"model": kept})
    return computed_peak(config, batch, architecture, engine.world.device) > ROOM * memory
