"""What the kernels of a pass cost a GPU at least, counted on the meta device, where nothing is computed.

A kernel reads its inputs and writes its results once, so it takes at least their bytes at the memory's bandwidth, or
its operations at the rate of matrix products, whichever is longer. Views and bare allocations cost nothing.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from tests.factories.allocations import tensors_in

FREE = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"}
BACKWARD_OF_FORWARD = 2.5
"""Products of flash attention's backward pass, which makes the scores again, over those of its forward pass."""


def bytes_of(*values: Any) -> int:
    """Bytes of every tensor; of a dimension that is spread over others (stride 0) one place."""
    total = 0
    for tensor in tensors_in(*values):
        places = 1
        for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
            places *= size if stride else min(size, 1)
        total += places * tensor.element_size()
    return total


class KernelCosts(TorchDispatchMode):
    """Adds up the least seconds of every kernel that runs under it."""

    def __init__(self, rate: float, bandwidth: float) -> None:
        """
        rate: operations a second of matrix products. bandwidth: bytes a second of the device's memory.
        """
        super().__init__()
        self.rate, self.bandwidth = rate, bandwidth
        self.seconds: Counter[str] = Counter()
        self._quiet = False

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        given, made = tensors_in(args, kwargs), tensors_in(result)
        on_device = any(tensor.device.type == "meta" for tensor in (*given, *made))
        if self._quiet or not on_device or name in FREE or self._is_view(func, given, made):
            return result
        operations = 0
        if func.overloadpacket in flop_registry:
            operations = flop_registry[func.overloadpacket](*args, **kwargs, out_val=result)
            # The counter takes attention within samples as if each position saw all others.
            operations //= 2 if "varlen" in name else 1
        read = made if name in ("index_select", "embedding", "gather") else given
        self.add(name, operations, bytes_of(read, made))
        return result

    @property
    def total_s(self) -> float:
        """Seconds of all kernels together."""
        return sum(self.seconds.values())

    def add(self, name: str, operations: float, moved: float) -> None:
        """Count a kernel of so many operations that moves so many bytes."""
        if not self._quiet:
            self.seconds[name] += max(operations / self.rate, moved / self.bandwidth)

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Count nothing meanwhile."""
        before, self._quiet = self._quiet, True
        try:
            yield
        finally:
            self._quiet = before

    @staticmethod
    def _is_view(func: Any, given: list[Tensor], made: list[Tensor]) -> bool:
        if func._schema.is_mutable:
            return False
        storages = {id(tensor.untyped_storage()) for tensor in given}
        return bool(made) and all(id(tensor.untyped_storage()) in storages for tensor in made)


def as_one_kernel(
    costs: KernelCosts, name: str, function: Callable[..., Any], operations: Callable[..., tuple[float, float]]
) -> Callable[..., Any]:
    """A function whose forward pass counts as one kernel, and its backward pass as another.

    operations: those of both, of the function's arguments.
    """

    class OneKernel(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            ctx.save_for_backward(*tensors_in(*inputs))
            ctx.constants = [None if isinstance(value, Tensor) else value for value in inputs]
            with costs.quiet():
                made = function(*inputs)
            costs.add(name, operations(*inputs)[0], bytes_of(inputs, made))
            return made

        @staticmethod
        def backward(ctx: Any, *slopes: Tensor) -> Any:
            saved = ctx.saved_tensors
            with costs.quiet(), torch.enable_grad():
                waiting = iter(saved)
                inputs = [
                    next(waiting).detach().requires_grad_(needed) if constant is None else constant
                    for constant, needed in zip(ctx.constants, ctx.needs_input_grad, strict=True)
                ]
                made = function(*inputs)
                wanted = [value for value, needed in zip(inputs, ctx.needs_input_grad, strict=True) if needed]
                found = iter(torch.autograd.grad(made, wanted, slopes))
                gradients = tuple(next(found) if needed else None for needed in ctx.needs_input_grad)
            costs.add(f"{name} backward", operations(*inputs)[1], bytes_of(saved, slopes, gradients))
            return gradients

    return OneKernel.apply


@contextmanager
def flash_attention(costs: KernelCosts) -> Iterator[None]:
    """Count PyTorch's attention as the fused kernel that a GPU runs; the meta device would take it apart."""
    plain = F.scaled_dot_product_attention

    def attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any) -> Tensor:
        seen = 0.5 if options.get("is_causal") else 1.0

        def operations(query: Tensor, key: Tensor, value: Tensor) -> tuple[float, float]:
            forward = 4.0 * query.numel() * key.shape[-2] * seen
            return forward, BACKWARD_OF_FORWARD * forward

        attend = as_one_kernel(costs, "attention", lambda q, k, v: plain(q, k, v, *args, **options), operations)
        attended: Tensor = attend(query, key, value)
        return attended

    F.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        F.scaled_dot_product_attention = plain
