"""AdamW over a model's trained parameters, and the learning rate as a function of the step."""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from train.config import ConfigError
from train.config_schema import OptimSection
from train.model.lora import parts_of

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


def part_scales(settings: OptimSection) -> dict[str, float]:
    """What the learning rate is multiplied by in the parts that have one of their own."""
    return {part: rate / settings.lr for part, rate in sorted(settings.lr_by_part.items())}


def build_optimizer(model: "torch.nn.Module", settings: OptimSection) -> "torch.optim.AdamW":
    """AdamW over the parameters that need gradients: matrices decayed, vectors not; the fused kernel of the device.

    Each group has `lr_scale`, what the learning rate is multiplied by in it (see `set_rates`).
    Raises ConfigError for a part with a learning rate of its own in which nothing is trained.
    """
    import torch

    scales = part_scales(settings)
    groups: dict[tuple[str | None, bool], list[torch.nn.Parameter]] = {(None, True): [], (None, False): []}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part = parts_of(name) if scales else None
        decayed = is_matrix(tuple(getattr(parameter, "ds_shape", parameter.shape)))
        groups.setdefault((part if part in scales else None, decayed), []).append(parameter)
    idle = sorted(set(scales) - {part for part, _ in groups if part})
    if idle:
        raise ConfigError(
            f"optim.lr_by_part: nothing is trained in {', '.join(idle)}, so a learning rate there has no effect; "
            "take it out, or train that part (tune.freeze, tune.lora.parts)"
        )
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "weight_decay": settings.weight_decay if decayed else 0.0,
                "lr_scale": scales[part] if part else 1.0,
            }
            for (part, decayed), parameters in groups.items()
            if parameters
        ],
        lr=settings.lr,
        betas=(settings.betas[0], settings.betas[1]),
        eps=settings.eps,
        fused=True,
    )


def set_rates(groups: Iterable[dict[str, Any]], rate: float) -> None:
    """Set the learning rate of every group of `build_optimizer`; `rate`: that of the parts without one of their own."""
    for group in groups:
        group["lr"] = rate * group["lr_scale"]
