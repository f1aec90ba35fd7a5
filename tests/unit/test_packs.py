"""Eight different samples in a pack, or padded on either side, are each what they are alone."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.factories.comparing import ORIGINAL_LENGTH, SAMPLES, alone, assert_same_gradients, gradients
from tests.factories.small_models import pack, padded, sample, small_model
from train.model import Phi3VForCausalLM


@dataclass(frozen=True, slots=True, kw_only=True)
class Alone:
    """A model, samples, and what it makes of each without the others."""

    model: Phi3VForCausalLM
    samples: list[dict[str, Any]]
    kept: list[torch.Tensor]
    """Of each sample, the positions whose logits are compared."""
    logits: list[torch.Tensor]
    gradients: dict[str, torch.Tensor]


def published_samples() -> list[dict[str, Any]]:
    """The same kinds of samples for crops of 336 pixels and long factors from 1,025 tokens on."""

    def one(seed: int, words: int, grids: list[tuple[int, int]] | None = None, answer: int = 5) -> dict[str, Any]:
        return sample(seed, words, grids, answer, crop_size=336, side=12)

    return [
        one(1, 6),
        one(2, 4, [(1, 1)]),
        one(3, 1100),
        one(4, 3, [(2, 2)]),
        one(5, 2, [(1, 2), (2, 1), (1, 1)]),
        one(6, 1, answer=1),
        one(7, 5, [(1, 2), (1, 2)]),
        one(8, 12, [(3, 1)], answer=9),
    ]


@pytest.fixture(scope="module")
def cases(request: pytest.FixtureRequest) -> Callable[[str, str], Alone]:
    """A model's name and its attention → the model with its samples, measured once."""

    def model(name: str) -> Phi3VForCausalLM:
        if name == "small":
            return small_model(original_length=ORIGINAL_LENGTH)
        material: Path = request.getfixturevalue("material")
        loaded: Phi3VForCausalLM = Phi3VForCausalLM.from_pretrained(material / "phi3v/golden/tiny", dtype="float32")
        return loaded

    @cache
    def case(name: str, attention: str) -> Alone:
        built = model(name)
        built.set_attn_implementation(attention)
        samples, every = (SAMPLES, 1) if name == "small" else (published_samples(), 61)
        lengths = [len(one["input_ids"]) for one in samples]
        counts = [len(one["image_sizes"]) for one in samples]
        limit = built.config.original_max_position_embeddings
        assert len(samples) == 8
        assert set(counts) == {0, 1, 2, 3}
        assert {(count > 0, length > limit) for count, length in zip(counts, lengths, strict=True)} == {
            (pictures, long) for pictures in (False, True) for long in (False, True)
        }
        kept = [torch.arange(length - 1, -1, -every).flip(0) for length in lengths]
        return Alone(
            model=built,
            samples=samples,
            kept=kept,
            logits=[
                built(**alone(one), logits_to_keep=positions).logits[0].detach()
                for one, positions in zip(samples, kept, strict=True)
            ],
            gradients=gradients(built, [alone(one) for one in samples]),
        )

    return case


CASES = [
    ("small", "sdpa"),
    ("small", "eager"),
    ("published", "sdpa"),
    pytest.param("published", "eager", marks=pytest.mark.soak),
]


@pytest.mark.parametrize(("name", "attention"), CASES)
def test_a_pack_gives_each_sample_its_own_logits_and_gradients(
    cases: Callable[[str, str], Alone], name: str, attention: str
) -> None:
    case = cases(name, attention)
    batch = pack(case.samples)
    starts = accumulate([len(one["input_ids"]) for one in case.samples], initial=0)
    kept = torch.cat([positions + start for positions, start in zip(case.kept, starts, strict=False)])
    logits = case.model(**batch, logits_to_keep=kept).logits[0]
    for found, wanted in zip(logits.split([len(positions) for positions in case.kept]), case.logits, strict=True):
        assert (found - wanted).abs().max() <= 1e-4
    assert_same_gradients(gradients(case.model, [batch]), case.gradients)


@pytest.mark.parametrize(("name", "attention"), CASES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing(
    cases: Callable[[str, str], Alone], name: str, attention: str, side: str
) -> None:
    case = cases(name, attention)
    batch = padded(case.samples, side)
    longest = batch["input_ids"].shape[1]
    columns = [
        positions + (longest - len(one["input_ids"]) if side == "left" else 0)
        for positions, one in zip(case.kept, case.samples, strict=True)
    ]
    kept = torch.cat(columns).unique()
    logits = case.model(**batch, logits_to_keep=kept).logits
    for row, (own, wanted) in enumerate(zip(columns, case.logits, strict=True)):
        found = logits[row, torch.searchsorted(kept, own)]
        assert (found - wanted).abs().max() <= 1e-4
    assert_same_gradients(gradients(case.model, [batch]), case.gradients)
