"""AdamW over a model's trained parameters, and the learning rate as a function of the step."""

import math
from typing import TYPE_CHECKING, Any

from train.config_schema import OptimSection

if TYPE_CHECKING:
    import torch


def is_matrix(shape: tuple[int, ...]) -> bool:
    """Whether a parameter of this shape is decayed: norms, biases, separators and class embeddings are vectors."""
    return sum(size > 1 for size in shape) >= 2


def learning_rate(step: int, total: int, settings: OptimSection) -> float:
    """The learning rate of a step.

    step: optimizer steps done before it, from 0.
    total: steps of the whole run; cosine and linear end there at lr * min_lr_ratio.
    """
    if step < settings.warmup_steps:
        return settings.lr * (step + 1) / settings.warmup_steps
    if settings.schedule == "constant":
        return settings.lr
    progress = min(1.0, (step - settings.warmup_steps) / max(1, total - settings.warmup_steps))
    left = 0.5 * (1.0 + math.cos(math.pi * progress)) if settings.schedule == "cosine" else 1.0 - progress
    return settings.lr * (settings.min_lr_ratio + (1.0 - settings.min_lr_ratio) * left)


def build_optimizer(model: "torch.nn.Module", settings: OptimSection) -> "torch.optim.AdamW":
    """AdamW over the parameters that need gradients: matrices decayed, vectors not; the fused kernel of the device."""
    import torch

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    shapes = [tuple(getattr(parameter, "ds_shape", parameter.shape)) for parameter in trained]
    matrices = [parameter for parameter, shape in zip(trained, shapes, strict=True) if is_matrix(shape)]
    vectors = [parameter for parameter, shape in zip(trained, shapes, strict=True) if not is_matrix(shape)]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.lr,
        betas=(settings.betas[0], settings.betas[1]),
        eps=settings.eps,
        fused=True,
    )
