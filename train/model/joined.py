"""LoRA's layers with fewer passes over their outputs: the low-rank product is added while it is made.

peft scales the product and adds it to the layer's own output in operations of their own, each of which reads and writes
all of an output that is hundreds of times as wide as the rank. Here the product goes into the layer's output as it is
made, scaled on its way, and is rounded with it once. Values and gradients are peft's but for rounding.
"""

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class AddedProduct(torch.autograd.Function):
    """base + scale · hidden · weightᵀ, written over `base` where nobody else looks at that."""

    @staticmethod
    def forward(ctx: Any, base: Tensor, hidden: Tensor, weight: Tensor, scale: float) -> Tensor:
        """base [..., outputs], hidden [..., rank], weight [outputs, rank] → [..., outputs]."""
        ctx.save_for_backward(hidden, weight)
        ctx.scale = scale
        rows = hidden.flatten(0, -2)
        if base.is_contiguous() and not base._is_view():
            ctx.mark_dirty(base)
            base.view(-1, base.shape[-1]).addmm_(rows, weight.t(), alpha=scale)
            return base
        return torch.addmm(base.flatten(0, -2), rows, weight.t(), alpha=scale).view(base.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        """Slopes of base, hidden and weight."""
        hidden, weight = ctx.saved_tensors
        rows = slope.flatten(0, -2)
        to_hidden = to_weight = None
        if ctx.needs_input_grad[1]:
            to_hidden = torch.mm(rows, weight).mul_(ctx.scale).view(hidden.shape)
        if ctx.needs_input_grad[2]:
            to_weight = torch.mm(rows.t(), hidden.flatten(0, -2)).mul_(ctx.scale)
        return slope, to_hidden, to_weight, None


def join_adapters(adapted: nn.Module) -> int:
    """Exchange the forward pass of the adapted layers in a model; parameters, their names and hooks stay.

    Layers whose adapters are more than a product (DoRA), or have a bias, stay peft's. Returns how many were exchanged.
    """
    layers: list[Any] = [layer for layer in adapted.modules() if hasattr(layer, "lora_A") and _is_plain(layer)]
    for layer in layers:
        for product in layer.lora_B.values():
            product.forward = MethodType(_added, product)
        layer.forward = MethodType(_joined(layer.forward), layer)
    return len(layers)


def _is_plain(layer: Any) -> bool:
    products = list(layer.lora_B.values())
    linear = all(isinstance(product, nn.Linear) and product.bias is None for product in products)
    return bool(products) and linear and not layer.lora_variant


def _added(self: nn.Linear, hidden: Tensor, base: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """What LoRA's second matrix does: alone, or added to what the layer gave."""
    if base is None:
        return nn.functional.linear(hidden, self.weight)
    added: Tensor = AddedProduct.apply(base, hidden, self.weight, scale)
    return added


def _joined(plain: Any) -> Any:
    """The forward pass of a layer; peft's own wherever it is asked for anything but its adapters' sum."""

    def forward(self: Any, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        cast = any(product.weight.dtype != hidden.dtype for product in self.lora_B.values())
        if args or kwargs or cast or self.disable_adapters or self.merged:
            return plain(hidden, *args, **kwargs)
        result: Tensor = self.base_layer(hidden)
        for name in self.active_adapters:
            if name not in self.lora_A:
                continue
            low = self.lora_A[name](self.lora_dropout[name](hidden))
            result = self.lora_B[name](low, result, self.scaling[name])
        return result

    return forward
