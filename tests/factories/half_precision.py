"""A pack through a model in half precision, held against the same weights in float32 by plain operations."""

from collections.abc import Callable
from typing import Any

import torch

from tests.factories.comparing import ORIGINAL_LENGTH, SAMPLES
from tests.factories.small_models import pack, sample, small_model
from train.model.modeling import Phi3VForCausalLM

UNIT = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
"""Largest relative error of one rounding."""
COSINE = 0.999
# The gradient of a norm's bias is a small sum of many terms of either sign: pictures enough to stand out of rounding.
MANY = [*SAMPLES, *(sample(seed, 3, [(2, 2)], answer=8) for seed in range(16))]


def outcome(model: Phi3VForCausalLM, device: torch.device) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits of a pack, and the gradient of each parameter, in float32."""
    batch: dict[str, Any] = pack(MANY)
    model.zero_grad()
    output = model(**batch | {"pixel_values": batch["pixel_values"].to(device)})
    output.loss.backward()
    gradients = {name: one.grad.float() for name, one in model.named_parameters() if one.grad is not None}
    return output.logits.detach().float(), gradients


def check_half(
    device: torch.device,
    dtype: torch.dtype,
    attention: str,
    change: Callable[[Phi3VForCausalLM], object] = lambda model: None,
) -> tuple[float, float]:
    """Assert that logits are within eight roundings (by norm) and each gradient points where it should.

    attention: of the model in half precision. change: what is done to it before.
    Returns: the logits' distance, relative; the least cosine of a parameter's gradient, `k_proj.bias` of the tower left
    out, whose gradient is 0 but for rounding: softmax does not see what is added to every key.
    """
    model = small_model(spread=0.05, original_length=ORIGINAL_LENGTH).to(device, dtype)
    exact = small_model(spread=0.05, original_length=ORIGINAL_LENGTH).to(device)
    exact.load_state_dict({name: value.float() for name, value in model.state_dict().items()})
    exact.set_attn_implementation("eager")
    model.set_attn_implementation(attention)
    change(model)
    wanted, found = outcome(exact, device), outcome(model, device)
    distance = float((found[0] - wanted[0]).norm() / wanted[0].norm())
    assert distance <= 8 * UNIT[dtype], distance
    assert found[1].keys() == wanted[1].keys()
    cosines = {
        name: float(torch.nn.functional.cosine_similarity(found[1][name].flatten(), gradient.flatten(), dim=0))
        for name, gradient in wanted[1].items()
        if not name.endswith("k_proj.bias")
    }
    least = min(cosines, key=lambda name: cosines[name])
    assert cosines[least] >= COSINE, (least, cosines[least])
    return distance, cosines[least]
