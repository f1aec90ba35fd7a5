"""How much memory torch's tensors take at most while something runs, counted and not measured."""

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from train.model.head import LabelHead


class LiveBytes:
    """Counts the bytes of storages that are told to it and not yet freed."""

    def __init__(self, piece: int = 1) -> None:
        """
        piece: bytes of which whole ones are given out.
        """
        self.live_bytes = 0
        self.peak_bytes = 0
        self._piece = piece
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def count(self, made: Iterable[torch.Tensor], given: Iterable[torch.Tensor]) -> None:
        """What an operation made, but for what lies in the memory of what it was given."""
        held = {id(tensor.untyped_storage()) for tensor in given}
        for tensor in made:
            storage = tensor.untyped_storage()
            if id(storage) in held or storage in self._known:
                continue
            self._known.add(storage)
            size = -(-storage.nbytes() // self._piece) * self._piece
            self.live_bytes += size
            self.peak_bytes = max(self.peak_bytes, self.live_bytes)
            weakref.finalize(storage, self._freed, size)

    def _freed(self, size: int) -> None:
        self.live_bytes -= size

    def forget_peak(self) -> None:
        """Count the peak from now on."""
        self.peak_bytes = self.live_bytes


def tensors_in(*values: Any) -> list[torch.Tensor]:
    """Every tensor in nested values."""
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


class Allocations(TorchDispatchMode, LiveBytes):
    """Counts the bytes of the tensors that are made under it and not yet freed.

    On the meta device nothing is computed, so that a case of any size takes no time and no memory.
    """

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)
        LiveBytes.__init__(self)

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.count(tensors_in(result), tensors_in(args))
        return result


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
