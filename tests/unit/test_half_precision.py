"""A pack in bfloat16 on a CPU: logits and gradients of float32 but for rounding."""

import torch

from tests.factories.half_precision import check_half
from train.model.modeling import Phi3VForCausalLM


def test_a_pack_in_bfloat16_is_float32_but_for_rounding() -> None:
    def change(model: Phi3VForCausalLM) -> None:
        model.train()
        model.set_checkpointing(decoder=True, vision=True)

    distance, cosine = check_half(torch.device("cpu"), torch.bfloat16, "sdpa", change)
    assert distance > 0
    assert cosine < 1
