"""The learning rate as a function of the step, and what is decayed."""

import pytest
import torch

from tests.factories.small_models import small_model
from train.config import ConfigError, validate
from train.config_schema import OptimSection
from train.model.lora import add_lora, parts_of, set_trainable
from train.optim import build_optimizer, is_matrix, learning_rate, part_scales, set_rates


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


def rates(model: torch.nn.Module, settings: OptimSection, rate: float) -> dict[str, set[float]]:
    """The learning rates that the optimizer uses in each part, at a main rate."""
    optimizer = build_optimizer(model, settings)
    set_rates(optimizer.param_groups, rate)
    used = {id(one): group["lr"] for group in optimizer.param_groups for one in group["params"]}
    found: dict[str, set[float]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found.setdefault(parts_of(name), set()).add(used.pop(id(parameter)))
    assert not used
    return found


def test_parts_have_their_own_rates_on_the_same_schedule() -> None:
    settings = OptimSection(lr=2e-5, lr_by_part={"vision": 2e-6, "head": 4e-5}, weight_decay=0.1)
    assert part_scales(settings) == pytest.approx({"head": 2.0, "vision": 0.1})
    halfway = rates(small_model(), settings, 1e-5)
    assert {part: found.pop() for part, found in halfway.items() if len(found) == 1} == pytest.approx(
        {"vision": 1e-6, "projection": 1e-5, "text": 1e-5, "embeddings": 1e-5, "head": 2e-5}
    )


def test_adapters_have_the_rate_of_the_part_they_sit_on() -> None:
    model, _ = add_lora(small_model(), 2, 4, 0.0, ["text_mlp", "vision"])
    found = rates(model, OptimSection(lr=1e-4, lr_by_part={"vision": 1e-5}), 1e-4)
    assert found == {"text": {1e-4}, "vision": {1e-5}}


def test_a_rate_for_a_part_that_is_not_trained_is_refused() -> None:
    model = small_model()
    set_trainable(model, ["text"])
    with pytest.raises(ConfigError, match="nothing is trained in head, vision"):
        build_optimizer(model, OptimSection(lr_by_part={"vision": 1e-6, "text": 1e-5, "head": 1e-5}))


def test_an_unknown_part_names_the_allowed_ones() -> None:
    with pytest.raises(ConfigError, match=r"optim\.lr_by_part\.eyes.*'vision', 'projection', 'text', 'embeddings'"):
        validate({"optim": {"lr_by_part": {"eyes": 1e-6}}}, "here")
    with pytest.raises(ConfigError, match=r"tune\.freeze\.0 is 'eyes'.*'vision', 'projection', 'text'"):
        validate({"tune": {"freeze": ["eyes"]}}, "here")
