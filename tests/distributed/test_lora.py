"""LoRA on 1, 2 and 3 ranks, dropout included, which is drawn anew for each pack whichever rank has it."""

from collections.abc import Callable

import pytest

from tests.distributed.conftest import Bench
from tests.distributed.test_training import assert_same_training
from train.checkpoint import full_tensors
from train.keeping import newest

# All there is to an adapter. DoRA reads frozen weights that ZeRO-3 has partitioned.
LORA = (
    "tune.method=lora",
    "tune.lora={rank: 4, alpha: 8, dropout: 0.1, parts: [text_attention, text_mlp], rslora: true, dora: true}",
)


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.soak)])
def test_more_ranks_train_the_same_adapters(bench: Bench, trained: Callable[..., str], ranks: int) -> None:
    assert_same_training(bench, trained(1, "lora", *LORA), trained(ranks, "lora", *LORA))


@pytest.mark.soak
def test_plain_adapters_train_the_same_on_more_ranks(bench: Bench, trained: Callable[..., str]) -> None:
    plain = ("tune.method=lora", "tune.lora={rank: 4, alpha: 8, dropout: 0.1, parts: [text_attention, text_mlp]}")
    assert_same_training(bench, trained(1, "plain-lora", *plain), trained(2, "plain-lora", *plain))


def test_a_checkpoint_holds_the_adapters_alone(bench: Bench, trained: Callable[..., str]) -> None:
    folder = newest(bench.runs / trained(2, "lora", *LORA))
    assert folder is not None
    saved = dict(full_tensors(folder))
    assert saved
    kinds = (".lora_A.", ".lora_B.", ".lora_magnitude_vector.")
    assert {kind for name in saved for kind in kinds if kind in name} == set(kinds)
    assert all(any(kind in name for kind in kinds) for name in saved)
    assert any(value.abs().max() > 0 for name, value in saved.items() if ".lora_B." in name)
