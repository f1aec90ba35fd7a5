"""Between DeepSpeed's ZeRO optimizers (stages 2 and 3) and checkpoint slices: what this rank holds, out and in.

Uses DeepSpeed's own accessors where it has them. Where it has none (Adam's state before the first step, persistent
parameters) it does what DeepSpeed's step does; checked against 0.19.8, which is pinned.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import deepspeed
import torch
from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

from train.checkpoint import KINDS, Reader, Slice

MOMENTS = KINDS[1:]
HELD = -1
"""Stands among the modules that are using a parameter (whose numbers begin at 0), so that none lets go of it."""
Named = Sequence[tuple[str, Any]]  # parameters, with what DeepSpeed adds to them


def trained_parameters(module: torch.nn.Module) -> Named:
    """(name, parameter) of all that the optimizer changes, in the model's order."""
    return [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]


@contextmanager
def gathered(module: torch.nn.Module) -> Iterator[None]:
    """All weights whole on each rank meanwhile, so that passes one after the other gather nothing; collective.

    Without partitioning (ZeRO-2) nothing happens. Nobody may change a weight, or run backward, in here.
    """
    parameters: list[Any] = [one for one in module.parameters() if hasattr(one, "ds_id")]
    with deepspeed.zero.GatheredParameters([one for one in parameters if not one.ds_persist]):
        for one in parameters:
            one.ds_active_sub_modules.add(HELD)
        try:
            yield
        finally:
            for one in parameters:
                one.ds_active_sub_modules.discard(HELD)


def full_shape(parameter: torch.nn.Parameter) -> list[int]:
    """A parameter's shape, partitioned or not."""
    return list(getattr(parameter, "ds_shape", parameter.shape))


def flat_partitions(zero: Any) -> list[torch.nn.Parameter]:
    """The flat fp32 tensors that Adam sees on this rank."""
    return getattr(zero, "fp32_partitioned_groups_flat", None) or zero.single_partition_of_fp32_groups


def local_range(parameter: Any, rank: int) -> tuple[int, int, int]:
    """ZeRO-3: (first element, elements, elements with padding) of a parameter that a rank holds."""
    padded = int(parameter.ds_tensor.numel())
    start = min(rank * padded, int(parameter.ds_numel))
    return start, min(padded, int(parameter.ds_numel) - start), padded


def local_slices(zero: Any, parameters: Named, rank: int) -> Iterator[Slice]:
    """What this rank holds of the trained parameters and Adam's moments: views of where it lies, flat fp32.

    zero: DeepSpeed's optimizer, after at least one step or `make_states`.
    """
    for name, parameter in parameters:
        if zero_stage(zero) == 3:
            start, length, _ = local_range(parameter, rank)
            held = {kind: partition(zero, parameter, kind) for kind in KINDS}
        else:
            mapping = parameter._hp_mapping
            if mapping is None:
                continue
            start, length = mapping.lp_fragment_address.start, mapping.lp_fragment_address.numel
            held = {kind: fragment(zero, mapping, kind) for kind in KINDS}
        if length > 0:
            cut = {kind: value.detach().flatten()[:length] for kind, value in held.items()}
            yield Slice(name=name, offset=start, tensors=cut)


def partition(zero: Any, parameter: Any, kind: str) -> torch.Tensor:
    """ZeRO-3: a view of what this rank holds of one parameter.

    DeepSpeed's public accessor copies it to the accelerator, which an optimizer on the host is kept away from.
    """
    key = None if kind == "weight" else kind
    view: torch.Tensor
    view, _ = zero._get_fp32_opt_state_partition(parameter, release_swap_buffers=True, optim_state_key=key)
    return view


def fragment(zero: Any, mapping: Any, kind: str) -> torch.Tensor:
    """ZeRO-2: a view of what this rank holds of one parameter.

    DeepSpeed's own view of the moments is made in the first group's first step and lacks all further groups.
    """
    flat = flat_partitions(zero)[mapping.param_group_index]
    whole = flat if kind == "weight" else zero.optimizer.state[flat][kind]
    address = mapping.hp_fragment_address
    return whole.narrow(0, address.start, address.numel)


def zero_stage(zero: Any) -> int:
    """2 or 3."""
    return 3 if hasattr(zero, "fp32_partitioned_groups_flat") else 2


def make_states(zero: Any) -> None:
    """Have Adam make its state, which it otherwise does at its first step: one step of gradient 0 and rate 0."""
    rates = [group["lr"] for group in zero.optimizer.param_groups]
    for group in zero.optimizer.param_groups:
        group["lr"] = 0.0
    for number, flat in enumerate(flat_partitions(zero)):
        kept = flat.grad
        flat.grad = torch.zeros_like(flat)
        zero._optimizer_step(number)
        flat.grad = kept
    for group, rate in zip(zero.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    set_adam_step(zero, 0)


def set_adam_step(zero: Any, step: int) -> None:
    """Set the number of updates that Adam's bias correction counts from."""
    for state in zero.optimizer.state.values():
        if isinstance(state["step"], torch.Tensor):
            state["step"].fill_(step)
        else:
            state["step"] = step


def adam_step(zero: Any) -> int:
    """Updates Adam has made."""
    return max((int(state["step"]) for state in zero.optimizer.state.values()), default=0)


def install(zero: Any, parameters: Named, reader: Reader, rank: int) -> None:
    """Put a checkpoint's values in place of this rank's; collective."""
    make_states(zero)
    if zero_stage(zero) == 3:
        install_partitions(zero, parameters, reader, rank)
    else:
        install_fragments(zero, parameters, reader)
    set_adam_step(zero, reader.manifest.adam_step)


def install_partitions(zero: Any, parameters: Named, reader: Reader, rank: int) -> None:
    """ZeRO-3: fp32 weights and moments, the low-precision copy, and the small parameters that stay gathered."""
    # Persistent parameters are released first and gathered again at the end: gathered ones would stay as they were.
    zero._partition_all_parameters()
    for name, parameter in parameters:
        start, length, padded = local_range(parameter, rank)
        for kind in KINDS:
            value = torch.zeros(padded)
            if length > 0:
                value[:length] = reader.read(kind, name, start, length)
            if kind != "weight":
                safe_set_local_optimizer_state(parameter, value, kind)
                continue
            safe_set_local_fp32_param(parameter, value)
            parameter.ds_tensor.data.copy_(value.view_as(parameter.ds_tensor))
    zero.invalidate_secondary_tensor()
    if zero.persistent_parameters:
        zero.persistent_parameters[0].all_gather(zero.persistent_parameters)


def install_fragments(zero: Any, parameters: Named, reader: Reader) -> None:
    """ZeRO-2: each rank's fragments of the fp32 weights and moments; then the model's weights from all ranks."""
    for name, parameter in parameters:
        mapping = parameter._hp_mapping
        if mapping is None:
            continue
        address = mapping.lp_fragment_address
        for kind in KINDS:
            fragment(zero, mapping, kind).data.copy_(reader.read(kind, name, address.start, address.numel))
    zero.update_lp_params()
