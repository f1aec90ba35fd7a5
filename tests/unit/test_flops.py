"""The arithmetic of a step against the sums that the published sizes give, and what devices can do."""

from typing import Any

import numpy as np
import pytest

from train.flops import Arithmetic, peak_flops
from train.model.configuration import Phi3VConfig
from train.pipeline.batch import Batch, Encoded, assemble

TOTAL = {"vision": 290_000_000, "projection": 22_000_000, "text": 3_620_000_000, "embeddings": 98_500_000}
TOTAL |= {"head": 98_500_000}


def pack(lengths: list[int], grids: list[tuple[int, int]]) -> Batch:
    """A pack of samples of these lengths, each with an answer of one token, pictures in the first."""
    samples = [
        Encoded(
            key=str(number),
            input_ids=np.zeros(length, np.int64),
            labels=np.array([-100] * (length - 1) + [5]),
            crops=np.zeros((0, 3, 2, 2), np.uint8),
            grids=np.array(grids if number == 0 else [], np.int64).reshape(-1, 2),
        )
        for number, length in enumerate(lengths)
    ]
    crops = np.zeros((sum(a * b for a, b in grids), 3, 2, 2), np.uint8)
    return assemble(samples, crops=crops, crop_chunks=1, label_chunks=1, number=0)


def cost(trained: dict[str, int], lengths: list[int], grids: list[tuple[int, int]] | None = None) -> int:
    settings: dict[str, Any] = {"hidden_size": 3072, "num_hidden_layers": 32}
    model = Phi3VConfig(**settings)
    return Arithmetic.of(dict.fromkeys(TOTAL, 0) | trained, TOTAL, model).of_packs([pack(lengths, grids or [])])


def test_full_training_is_six_operations_a_weight_and_token() -> None:
    attention = 6 * 3072 * 32 * (100**2 + 50**2)
    expected = 6 * TOTAL["text"] * 150 + 6 * TOTAL["head"] * 2 + attention
    assert cost(TOTAL, [100, 50]) == pytest.approx(expected, rel=1e-9)


def test_a_picture_of_several_crops_is_seen_once_more_as_a_whole() -> None:
    per_crop = 6 * TOTAL["vision"] * 577 + 6 * TOTAL["projection"] * 144
    bare = cost(TOTAL, [100])
    assert cost(TOTAL, [100], [(1, 1)]) - bare == pytest.approx(per_crop, rel=1e-9)
    assert cost(TOTAL, [100], [(2, 3)]) - bare == pytest.approx(7 * per_crop, rel=1e-9)


def test_frozen_parts_need_no_gradient_of_their_weights_and_none_at_all_before_what_is_trained() -> None:
    adapters = {"text": 50_000_000}
    text = {**TOTAL, "text": TOTAL["text"]}
    assert cost(adapters, [100]) < cost(text, [100])
    seen = cost(adapters, [100], [(1, 1)]) - cost(adapters, [100])
    assert seen == pytest.approx(2 * TOTAL["vision"] * 577 + 2 * TOTAL["projection"] * 144, rel=1e-9)


def test_peaks_are_known_by_the_drivers_names_and_for_half_precision_alone() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3", "bf16") == 989e12
    assert peak_flops("NVIDIA L40S", "bf16") == 362e12
    assert peak_flops("NVIDIA L4", "bf16") == 121e12
    assert peak_flops("NVIDIA H100 80GB HBM3", "fp32") is None
    assert peak_flops("Some other device", "bf16") is None
