"""The learning rate as a function of the step, and what is decayed."""

import pytest
import torch

from train.config_schema import OptimSection
from train.optim import build_optimizer, is_matrix, learning_rate


@pytest.mark.parametrize(
    ("schedule", "ratio", "expected"),
    [
        ("constant", 0.0, [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", 0.0, [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", 0.0, [0.5, 1.0, 1.0, 0.853553, 0.5, 0.146447]),
        ("cosine", 0.2, [0.5, 1.0, 1.0, 0.882843, 0.6, 0.317157]),
    ],
)
def test_the_rate_warms_up_and_falls(schedule: str, ratio: float, expected: list[float]) -> None:
    settings = OptimSection(lr=1.0, schedule=schedule, warmup_steps=2, min_lr_ratio=ratio)  # type: ignore[arg-type]
    assert [learning_rate(step, 6, settings) for step in range(6)] == pytest.approx(expected, abs=1e-6)


def test_the_rate_is_defined_where_warm_up_is_longer_than_the_run() -> None:
    settings = OptimSection(lr=1.0, warmup_steps=10)
    assert learning_rate(2, 3, settings) == pytest.approx(0.3)
    assert learning_rate(10, 3, settings) == 1.0


@pytest.mark.parametrize(
    ("shape", "matrix"),
    [((4, 4), True), ((8, 3, 14, 14), True), ((8,), False), ((1, 1, 8), False), ((1, 1, 1, 8), False), ((), False)],
)
def test_norms_biases_and_separators_are_vectors(shape: tuple[int, ...], matrix: bool) -> None:
    assert is_matrix(shape) == matrix


def test_only_trained_matrices_are_decayed() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3), torch.nn.Linear(3, 2))
    model[2].weight.requires_grad_(False)
    optimizer = build_optimizer(model, OptimSection(weight_decay=0.1))
    decays = {id(one): group["weight_decay"] for group in optimizer.param_groups for one in group["params"]}
    assert decays == {
        id(model[0].weight): 0.1,
        id(model[0].bias): 0.0,
        id(model[1].weight): 0.0,
        id(model[1].bias): 0.0,
        id(model[2].bias): 0.0,
    }
