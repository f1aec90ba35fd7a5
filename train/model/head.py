"""The output head with the loss inside, so that logits exist only where there is a label, a chunk at a time."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Slopes = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def label_slopes(hidden: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The summed loss of hidden [n, hidden_size] at labels int64 [n], float32, and its slopes at the logits.

    The slopes [n, vocabulary] are of the weight's dtype.
    """
    logs = torch.log_softmax(F.linear(hidden, weight).float(), dim=-1)
    loss = _summed_loss(logs, labels)
    slopes = logs.exp_()
    slopes[torch.arange(len(labels), device=labels.device), labels] -= 1
    return loss, slopes.to(weight.dtype)


def _summed_loss(logs: Tensor, labels: Tensor) -> Tensor:
    return F.nll_loss(logs, labels, reduction="sum") if len(labels) else logs.sum()


class SummedCrossEntropy(torch.autograd.Function):
    """Sum of −log softmax(hidden · weightᵀ)[label] in float32, whose gradients are made along with the value.

    A chunk's logits [rows / chunks, vocabulary] are the largest thing in memory; nothing of it is kept for the
    backward pass, and no product is computed twice.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, chunks: int, slopes_of: Slopes = label_slopes
    ) -> Tensor:
        """hidden [n, hidden_size], weight [vocabulary, hidden_size], labels int64 [n] → float32 scalar."""
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        hidden_gradient = torch.empty_like(hidden) if needs_hidden else None
        # Several chunks add up in float32, or bfloat16 would lose the small ones.
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        start = 0
        for rows, targets in zip(hidden.tensor_split(chunks), labels.tensor_split(chunks), strict=True):
            if not (needs_hidden or needs_weight):
                total += _summed_loss(torch.log_softmax(F.linear(rows, weight).float(), dim=-1), targets)
                continue
            loss, slopes = (slopes_of if len(targets) else label_slopes)(rows, weight, targets)
            total += loss
            if hidden_gradient is not None:
                torch.mm(slopes, weight, out=hidden_gradient[start : start + len(rows)])
                start += len(rows)
            if weight_gradient is not None and weight.dtype == torch.float32:
                weight_gradient.addmm_(slopes.T, rows)
            elif weight_gradient is not None:
                weight_gradient += slopes.T @ rows
            del slopes
        ctx.gradients = hidden_gradient, weight_gradient.to(weight.dtype) if weight_gradient is not None else None
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        """The gradients of the forward pass, times the one that comes in.

        Handed on and not copied: they are as large as the weight and the hidden states, so there is no second time.
        """
        if ctx.gradients is None:
            raise RuntimeError("the gradients of this loss were handed on: it has one backward pass")
        hidden, weight = ctx.gradients
        ctx.gradients = None
        return (
            hidden.mul_(gradient) if hidden is not None else None,
            weight.mul_(gradient) if weight is not None else None,
            None,
            None,
            None,
        )


class LabelHead(nn.Linear):
    """`lm_head`: logits as any linear layer; with labels, their summed negative log-likelihood.

    Both come from a call of this module, so whatever gathers a partitioned weight does it once around the loss.
    """

    labels_per_chunk = 512
    slopes: Slopes = staticmethod(label_slopes)
    """How a chunk's loss and its slopes are made."""

    def forward(self, hidden: Tensor, labels: Tensor | None = None, chunks: int | None = None) -> Tensor:
        """hidden [..., hidden_size] → logits [..., vocabulary]; with labels int64 [n], hidden [n, hidden_size] → sum.

        `chunks`: in how many pieces the labels are taken; None for pieces of `labels_per_chunk`. No labels at all give
        a loss of 0 whose gradients are zeros.
        """
        if labels is None:
            return F.linear(hidden, self.weight, self.bias)
        if chunks is None:
            chunks = max(1, math.ceil(len(labels) / self.labels_per_chunk))
        loss = SummedCrossEntropy.apply(hidden, self.weight, labels, chunks, self.slopes)
        assert isinstance(loss, Tensor)
        return loss
