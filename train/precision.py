"""What a training computes in, and fp16's loss scale: it keeps small gradients from vanishing and falls on overflow."""

from collections.abc import Mapping
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

from train.config import ConfigError


def check_precision(precision: str) -> None:
    """Raise ConfigError for a `model.precision` that DeepSpeed refuses on this machine's device."""
    accelerator = get_accelerator()
    device = accelerator.device_name()
    if precision == "fp16" and not accelerator.is_fp16_supported():
        raise ConfigError(
            f"model.precision: fp16 is not computed on this machine's {device} (DeepSpeed asks for a GPU, or a CPU "
            "with fp16 instructions); set model.precision to bf16 or fp32"
        )
    if precision == "bf16" and not accelerator.is_bf16_supported():
        raise ConfigError(
            f"model.precision: bf16 is not computed on this machine's {device}; set model.precision to fp16 or fp32"
        )


class LossScaler(DynamicLossScaler):
    """DeepSpeed's, but it grows when the step is done.

    DeepSpeed 0.19.8 lets it grow in the middle of a step and then divides the gradient, which was made under the old
    scale, by the new one: that step would be taken with half the gradient. Its lowest scale is no error here either:
    a gradient that is not finite there is answered like one in any other precision.
    """

    grows = False

    def update_scale(self, overflow: bool) -> None:
        """Called by DeepSpeed's step, with whether the gradient is not finite."""
        if overflow:
            super().update_scale(True)
        else:
            self.grows = True

    def end_step(self) -> None:
        """Called when the weights are updated."""
        if self.grows:
            super().update_scale(False)
            self.grows = False


class LossScale:
    """What the loss of a training is multiplied by before backward, and the gradient divided by after."""

    def __init__(self, zero: Any) -> None:
        """
        zero: DeepSpeed's optimizer; in fp16 without a fixed scale, its scaler is exchanged for the one above.
        """
        self._zero = zero
        self._half = zero.dtype == torch.float16
        self._scaler: LossScaler | None = None
        if zero.dynamic_loss_scale:
            made = zero.loss_scaler
            self._scaler = zero.loss_scaler = LossScaler(
                init_scale=made.cur_scale,
                scale_window=made.scale_window,
                min_scale=made.min_scale,
                delayed_shift=made.delayed_shift,
                consecutive_hysteresis=made.consecutive_hysteresis,
                raise_error_at_min_scale=False,
            )

    @property
    def value(self) -> float | None:
        """The scale of the next step; None where the loss is not scaled."""
        return float(self._zero.loss_scale) if self._half else None

    @property
    def may_fall(self) -> bool:
        """Whether a gradient that overflows now may be finite at a lower scale."""
        return self._scaler is not None and self._scaler.cur_scale > self._scaler.min_scale

    def end_step(self) -> None:
        """To be called after each of DeepSpeed's steps."""
        if self._scaler is not None:
            self._scaler.end_step()

    def state(self) -> dict[str, float] | None:
        """What a checkpoint keeps of it; None where nothing changes."""
        made = self._scaler
        if made is None:
            return None
        return {
            "scale": float(made.cur_scale),
            "hysteresis": made.cur_hysteresis,
            "steps": made.cur_iter,
            "last_overflow": made.last_overflow_iter,
        }

    def restore(self, state: Mapping[str, float]) -> None:
        """Go back to what `state` gave."""
        made = self._scaler
        if made is None:
            return
        made.cur_scale = state["scale"]
        made.cur_hysteresis = int(state["hysteresis"])
        made.cur_iter = int(state["steps"])
        made.last_overflow_iter = int(state["last_overflow"])
