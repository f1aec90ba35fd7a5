"""How much memory torch's tensors take at most while something runs, counted and not measured."""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from train.model.head import LabelHead


class Allocations(TorchDispatchMode):
    """Counts the bytes of the tensors that are made under it and not yet freed.

    On the meta device nothing is computed, so that a case of any size takes no time and no memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live_bytes = 0
        self.peak_bytes = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = {id(leaf.untyped_storage()) for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage(), given)
        return result

    def _count(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        if id(storage) in given or storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        weakref.finalize(storage, self._freed, size)

    def _freed(self, size: int) -> None:
        self.live_bytes -= size


def loss_peak_bytes(
    loss_of: Callable[[LabelHead, torch.Tensor, torch.Tensor], torch.Tensor],
    sizes: tuple[int, int, int],
    dtype: torch.dtype,
) -> int:
    """The most bytes that a loss and its backward pass take, beside their inputs and the gradients they leave.

    `sizes`: labels, width and vocabulary.
    """
    tokens, width, vocabulary = sizes
    with torch.device("meta"):
        head = LabelHead(width, vocabulary, bias=False, dtype=dtype)
        hidden = torch.empty(tokens, width, dtype=dtype, requires_grad=True)
        labels = torch.empty(tokens, dtype=torch.int64)
    with Allocations() as allocations:
        loss_of(head, hidden, labels).backward()
    left = sum(tensor.grad.nbytes for tensor in (hidden, head.weight) if tensor.grad is not None)
    assert hidden.nbytes + head.weight.nbytes == left <= allocations.live_bytes
    return allocations.peak_bytes - left
