"""LoRA on 1, 2 and 3 ranks, dropout included, which is drawn anew for each pack whichever rank has it."""

from collections.abc import Callable

import pytest

from tests.distributed.conftest import Bench
from tests.distributed.test_training import assert_same_training
from train.checkpoint import full_tensors, newest

LORA = ("tune.method=lora", "tune.lora={rank: 4, alpha: 8, dropout: 0.1, parts: [text_attention, text_mlp]}")


@pytest.mark.parametrize("ranks", [2, 3])
def test_more_ranks_train_the_same_adapters(bench: Bench, trained: Callable[..., str], ranks: int) -> None:
    assert_same_training(bench, trained(1, "lora", *LORA), trained(ranks, "lora", *LORA))


def test_a_checkpoint_holds_the_adapters_alone(bench: Bench, trained: Callable[..., str]) -> None:
    folder = newest(bench.runs / trained(2, "lora", *LORA))
    assert folder is not None
    saved = dict(full_tensors(folder))
    assert saved
    assert all(".lora_A." in name or ".lora_B." in name for name in saved)
    assert any(value.abs().max() > 0 for name, value in saved.items() if ".lora_B." in name)
