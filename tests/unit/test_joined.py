"""Adapters whose product goes into the layer's output as it is made, against peft's own layers."""

from typing import Any

import pytest
import torch
from peft import PeftModel

from tests.factories.small_models import pack, sample, small_model
from train.model.joined import AddedProduct, join_adapters
from train.model.lora import LORA_TARGETS, add_lora

BATCH = pack([sample(1, 4, [(2, 1)]), sample(2, 9)])
LAYERS = 22


def adapted(dtype: torch.dtype = torch.float32, dropout: float = 0.0, **options: Any) -> PeftModel:
    """A small model with adapters on every layer that can have them, of a scale that is no power of two."""
    model, _ = add_lora(small_model(spread=0.05), 4, 12, dropout, list(LORA_TARGETS), **options)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model.to(dtype).train()


def outcome(model: PeftModel) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits, and every adapter's gradient but those of the tower's keys, whose true ones are next to nothing."""
    model.zero_grad()
    torch.manual_seed(1)
    output = model(**BATCH)
    output.loss.backward()
    gradients = {
        name: one.grad for name, one in model.named_parameters() if one.grad is not None and "k_proj" not in name
    }
    return output.logits.detach(), gradients


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_logits_and_gradients_are_pefts(dropout: float, checkpointing: bool) -> None:
    theirs, ours = adapted(dropout=dropout), adapted(dropout=dropout)
    assert join_adapters(ours) == LAYERS
    for model in (theirs, ours):
        model.get_base_model().set_checkpointing(decoder=checkpointing, vision=checkpointing)
    (wanted, wanted_slopes), (found, found_slopes) = outcome(theirs), outcome(ours)
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert found_slopes.keys() == wanted_slopes.keys()
    assert len(wanted_slopes) > LAYERS
    for name, slope in wanted_slopes.items():
        assert (found_slopes[name] - slope).norm() <= 1e-5 * slope.norm(), name


def test_in_half_precision_the_sum_is_rounded_once() -> None:
    torch.manual_seed(0)
    base, hidden, weight = (torch.randn(size).bfloat16() for size in ((2, 300, 64), (2, 300, 8), (64, 8)))
    exact = base.double() + 0.75 * hidden.double() @ weight.double().t()
    joined = AddedProduct.apply(base.clone(), hidden, weight, 0.75)
    apart = base + hidden @ weight.t() * 0.75
    assert (joined.double() - exact).norm() < 0.9 * (apart.double() - exact).norm()


@pytest.mark.parametrize("base_trained", [False, True])
@pytest.mark.parametrize("view", [False, True])
def test_gradients_are_those_of_differences(view: bool, base_trained: bool) -> None:
    torch.manual_seed(0)
    leaf = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=base_trained)
    hidden = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)

    def summed(leaf: torch.Tensor, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        base = leaf.view(2, 3, 5) if view else leaf * 2
        return AddedProduct.apply(base, hidden, weight, 1.5)

    assert torch.autograd.gradcheck(summed, (leaf, hidden, weight))


def test_a_view_that_others_hold_is_left_as_it_is() -> None:
    whole = torch.ones(2, 3, 5)
    AddedProduct.apply(whole.view(6, 5), torch.ones(6, 2), torch.ones(5, 2), 1.0)
    assert torch.equal(whole, torch.ones(2, 3, 5))


def test_adapters_switched_off_or_of_another_type_are_left_to_peft() -> None:
    theirs, ours = adapted().eval(), adapted().eval()
    join_adapters(ours)
    with torch.no_grad(), theirs.disable_adapter(), ours.disable_adapter():
        assert torch.equal(ours(**BATCH).logits, theirs(**BATCH).logits)
    for model in (theirs, ours):
        model.get_base_model().bfloat16()
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.float()
    with torch.no_grad():
        assert torch.equal(ours(**BATCH).logits, theirs(**BATCH).logits)


def test_adapters_that_are_more_than_a_product_stay_pefts() -> None:
    assert join_adapters(adapted(dora=True)) == 0
