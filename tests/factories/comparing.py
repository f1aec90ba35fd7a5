"""Eight different samples, and what a model makes of them alone, for comparison with batches and packs."""

from typing import Any

import torch

from tests.factories.small_models import pack, sample
from train.model import Phi3VForCausalLM

# RoPE's long factors from 41 tokens on; none to three pictures, grids of every kind.
ORIGINAL_LENGTH = 40
SAMPLES = [
    sample(1, 6),
    sample(2, 4, [(1, 1)]),
    sample(3, 50),
    sample(4, 3, [(2, 2)]),
    sample(5, 2, [(1, 3), (3, 1), (1, 1)]),
    sample(6, 1, answer=1),
    sample(7, 5, [(1, 2), (1, 2)]),
    sample(8, 12, [(4, 1)], answer=9),
]


def alone(one: dict[str, Any]) -> dict[str, Any]:
    """The model's arguments for one sample that is in no pack."""
    return {key: value for key, value in pack([one]).items() if key != "cu_seqlens"}


def gradients(model: Phi3VForCausalLM, batches: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """The gradients of the batches' summed loss; k_proj.bias left out, whose true gradient is zero."""
    model.zero_grad()
    for batch in batches:
        model(**batch, loss_reduction="sum", return_logits=False).loss.backward()
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and not name.endswith("k_proj.bias")
    }


def assert_same_gradients(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """Of the same parameters, within 1e-3 of each one's norm."""
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert (found[name] - gradient).norm() <= 1e-3 * gradient.norm() + 1e-9, name
