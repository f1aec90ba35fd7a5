"""Gradient checkpointing whose inputs wait in the host's memory."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint


def checkpoint_to_host(function: Callable[..., Any], hidden: Tensor, *inputs: Any) -> Any:
    """Call a layer and recompute it in the backward pass from its inputs, kept in pinned host memory till then.

    Only what the layer is called with moves: the hooks of `checkpoint` lie inside and keep the layer's own
    intermediate results from being saved at all. Where the layer runs on the CPU, nothing moves and nothing is copied.
    """
    with save_on_cpu(pin_memory=hidden.is_cuda):
        return checkpoint(function, hidden, *inputs, use_reentrant=False)
