"""What a training is computed to need: the tensors are the model's, what is kept is what autograd keeps."""

import json
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.factories.allocations import Allocations
from tests.factories.published_tensors import published_tensors
from tests.factories.small_models import pack, sample, small_model
from train import questions
from train.config import ConfigError, load, validate
from train.config_schema import LoraSection
from train.deepspeed_config import read
from train.estimate.events import Pass
from train.estimate.gathering import Gathering
from train.estimate.loads import usual_load
from train.estimate.memory import MOST_TOKENS, estimate
from train.estimate.report import Machine, advice_lines, fitting_lines, parse_memory
from train.estimate.setup import PackLoad, Setup, Zero
from train.estimate.sizes import PUBLISHED, ModelSizes, tensors
from train.model.lora import add_lora, parts_of
from train.optim import build_optimizer

GIB = 2**30
CONFIGS = Path("train/configs")


def sizes_of(model: Any) -> ModelSizes:
    return ModelSizes.of(json.loads(model.config.to_json_string(use_diff=False)))


def alone(**changes: Any) -> Setup:
    """A small model on one CPU rank with ZeRO-2, which changes nothing about what autograd keeps."""
    return Setup(sizes=sizes_of(small_model()), zero=Zero(stage=2, keeps_inputs=False), ranks=1, on_cpu=True, **changes)


def test_the_tensors_are_the_published_ones() -> None:
    found = {tensor.name: tensor.shape for tensor in tensors(PUBLISHED)}
    assert found == published_tensors()
    assert all(tensor.part == parts_of(tensor.name) for tensor in tensors(PUBLISHED))


@pytest.mark.parametrize("dora", [False, True])
def test_adapters_and_groups_are_those_of_the_optimizer(dora: bool) -> None:
    parts = ["text_attention", "text_mlp", "projection", "vision"]
    lora = LoraSection(rank=3, alpha=6, parts=parts, dora=dora)  # type: ignore[arg-type]
    setup = alone(method="lora", lora=lora, own_rates=("vision",))
    model, _ = add_lora(small_model(), 3, 6, 0.0, parts, dora=dora)
    config = validate({"optim": {"lr_by_part": {"vision": 1e-6}}}, "here")
    wanted = [
        sum(one.numel() for one in group["params"]) for group in build_optimizer(model, config.optim).param_groups
    ]
    assert sorted(sum(one.numel for one in group) for group in setup.groups()) == sorted(wanted)


def test_the_copy_that_saves_are_written_from_is_host_memory() -> None:
    for setup in (
        Setup(sizes=PUBLISHED, zero=Zero(stage=2), ranks=1),
        Setup(sizes=PUBLISHED, zero=Zero(stage=3), ranks=1),
    ):
        trained = sum(tensor.numel for group in setup.groups() for tensor in group)
        load = PackLoad(
            tokens=64,
            labels=8,
            crops=1,
            pictures=1,
            image_tokens=40,
            crop_chunks=1,
            label_chunks=1,
            longest=64,
            samples=1,
        )
        without = estimate(replace(setup, copies_saves=False), load)
        assert estimate(setup, load).host == without.host + 12 * trained
        assert estimate(setup, load).peak == without.peak


def test_full_training_leaves_out_what_is_frozen_and_what_is_never_run() -> None:
    model = small_model()
    wanted = sum(
        one.numel() for name, one in model.named_parameters() if one.requires_grad and parts_of(name) != "head"
    )
    assert sum(one.numel for group in alone(freeze=("head",)).groups() for one in group) == wanted


def kept(model: Any, batch: dict[str, Any]) -> int:
    """Bytes that are there after a forward pass and were not before."""
    with Allocations() as allocations:
        output = model(**batch, loss_reduction="sum", return_logits=False, use_cache=False, label_chunks=1)
    assert output.loss.requires_grad
    return allocations.live_bytes


@pytest.mark.parametrize(
    ("method", "precision", "attention", "checkpointing"),
    [
        ("full", "fp32", "sdpa", False),
        ("full", "bf16", "eager", False),
        ("full", "bf16", "sdpa", True),
        ("lora", "fp32", "eager", False),
        ("lora", "bf16", "sdpa", False),
        ("lora", "fp32", "sdpa", True),
    ],
)
def test_what_a_forward_pass_keeps_is_what_autograd_keeps(
    method: str, precision: str, attention: str, checkpointing: bool
) -> None:
    lora = LoraSection(rank=4, alpha=8, parts=["text_attention", "text_mlp", "projection", "vision"])
    changes = {"hidden_size": 128, "intermediate_size": 384, "num_attention_heads": 4, "num_key_value_heads": 4}
    model = small_model(**changes).train()
    sizes = sizes_of(model)
    if method == "lora":
        model, _ = add_lora(model, lora.rank, lora.alpha, 0.0, lora.parts)
    model = model.to(torch.float32 if precision == "fp32" else torch.bfloat16)
    base = model.base_model.model if method == "lora" else model
    base.set_attn_implementation(attention)
    base.set_checkpointing(decoder=checkpointing, vision=checkpointing)
    samples = [sample(seed, 40, [(2, 2), (1, 1)], answer=20) for seed in range(3)]
    batch = pack(samples)
    tokens = batch["input_ids"].shape[1]
    image = 3 * (sizes.image_tokens(2, 2) + sizes.image_tokens(1, 1))
    pass_load = PackLoad(
        tokens=tokens,
        labels=60,
        crops=18,
        pictures=6,
        image_tokens=image,
        crop_chunks=1,
        label_chunks=1,
        longest=tokens // 3,
        samples=3,
    )
    setup = replace(
        alone(
            method=method,
            lora=lora if method == "lora" else None,
            precision=precision,
            attention=attention,
            checkpoint_decoder=checkpointing,
            checkpoint_vision=checkpointing,
        ),
        sizes=sizes,
    )
    written = Pass(setup, pass_load)
    written.forward_pictures()
    written.forward_text()
    written.loss()
    computed = sum(event.keeps for event in written.events[:-3])
    assert kept(model, batch) == pytest.approx(computed, rel=0.1)


def test_parameters_are_gathered_ahead_and_let_go_when_they_are_far() -> None:
    trace = [[0], [1], [2], [3], [3], [2], [1], [0]]
    near = Gathering(trace=trace, numels=[10] * 4, prefetch=10, max_live=20, max_reuse=15)
    held = []
    for _ in trace:
        near.fetch()
        held.append(near.elements)
        near.release()
    assert held == [20, 20, 20, 20, 20, 20, 20, 10]
    assert near.elements == 0
    far = Gathering(trace=trace, numels=[10] * 4, prefetch=0, max_live=100, max_reuse=1000)
    for _ in trace[:4]:
        far.fetch()
        far.release()
    assert far.elements == 40


def test_parameters_gathered_together_are_there_twice_until_all_are_used() -> None:
    both = Gathering(trace=[[], [0], [1]], numels=[10, 10], prefetch=20, max_live=100, max_reuse=0)
    both.fetch()
    assert both.elements == 20
    both.release()
    both.fetch()
    assert both.elements == 40
    both.release()
    both.fetch()
    assert both.elements == 10


def published(recipe: str, *overrides: str, ranks: int = 8, crops: int = 4) -> float:
    """GiB of a rank for the published model."""
    config = load(CONFIGS / f"{recipe}.yaml", overrides)
    setup = Setup.of(config, read(config), PUBLISHED, ranks)
    return estimate(setup, usual_load(config, PUBLISHED, crops)).peak.total / GIB


def test_the_published_models_states_are_those_of_its_parameters() -> None:
    one, eight = (published("full_8x80gb", ranks=ranks) for ranks in (1, 8))
    # 4.13 billion trained: bf16 weight and gradient, fp32 weight, two moments, and the step's fp32 gradients.
    assert 61 < one < 80
    assert eight < 16


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ("model.checkpoint_decoder=true", "model.checkpoint_decoder=false"),
        ("data.pack_length=4096", "data.pack_length=8192"),
        ("tune.freeze=[text]", "tune.freeze=[]"),
        ("model.precision=bf16", "model.precision=fp32"),
        ("deepspeed=ds_configs/zero3.json", "deepspeed=ds_configs/zero2.json"),
    ],
)
def test_settings_that_save_memory_save_it(less: str, more: str) -> None:
    assert published("full_8x80gb", less) < published("full_8x80gb", more)


def test_gpu_memory_is_read_with_its_unit() -> None:
    assert parse_memory("80GiB") == 80 * GIB
    assert parse_memory("24 GB") == 24 * 10**9
    with pytest.raises(ConfigError, match="--gpu-memory 80: expected a number and a unit"):
        parse_memory("80")
    with pytest.raises(ConfigError, match="--gpu-memory 0GiB"):
        parse_memory("0GiB")


def test_where_it_does_not_fit_changes_are_named_with_what_they_make_of_it() -> None:
    config = load(CONFIGS / "full_8x80gb.yaml")
    small = Machine(nodes=1, gpus=1, gpu_memory=24 * GIB)
    lines = list(advice_lines(config, PUBLISHED, usual_load(config, PUBLISHED, 4), small))
    assert "does not fit" in lines[0]
    assert any("fits" in line and "zero3_offload.json" in line and "host memory" in line for line in lines[1:])
    assert any("fits" in line and "tune.method=lora" in line for line in lines[1:])
    (line,) = advice_lines(config, PUBLISHED, usual_load(config, PUBLISHED, 4), replace(small, gpus=8))
    assert line.startswith("it fits")


@pytest.mark.parametrize(
    ("gib", "settings", "told"),
    [
        (80, {}, True),
        (24, {}, False),
        (80, {"checkpoint_decoder": False, "checkpoint_vision": False}, False),
        (80, {"checkpoint_offload": True}, True),
    ],
)
def test_room_for_all_activations_is_told(gib: int, settings: dict[str, bool], told: bool) -> None:
    config = load(CONFIGS / "full_8x80gb.yaml")
    config = config.model_copy(update={"model": config.model.model_copy(update=settings)})
    machine = Machine(nodes=1, gpus=8, gpu_memory=gib * GIB)
    lines = list(advice_lines(config, PUBLISHED, usual_load(config, PUBLISHED, 4), machine))
    assert any("recompute nothing" in line and "a quarter" in line for line in lines) is told


def test_every_recipe_is_shown_with_every_deepspeed_file_that_it_can_have() -> None:
    lines = list(fitting_lines(PUBLISHED, Machine(nodes=1, gpus=8, gpu_memory=80 * GIB), CONFIGS, Path("ds_configs")))
    for recipe in ("default", "full_8x80gb", "lora_8x80gb", "lora_24gb", "full_24gb_offload"):
        found = [line.split()[1] for line in lines if line.split()[0].lstrip("*") == recipe]
        assert found == ["zero2", "zero3", "zero3_offload"]
    assert all(" fits" in line and "NO" not in line for line in lines[2:])


def test_the_page_has_the_tables_that_are_computed_now(root: Path) -> None:
    text = (root / "docs/memory.md").read_text(encoding="utf-8")
    assert runpy.run_path(str(root / "docs/make_memory.py"))["page"](text) == text, "run: python docs/make_memory.py"


def test_answers_while_training_take_all_weights_and_their_tokens_keys_and_values() -> None:
    assert MOST_TOKENS == questions.MOST_TOKENS
    config = load(CONFIGS / "full_8x80gb.yaml", ["evaluate.answers=64", "evaluate.answer_batch=4"])
    packs = usual_load(config, PUBLISHED, 4)
    setup = Setup.of(config, read(config), PUBLISHED, ranks=8)
    found = estimate(setup, packs).device
    assert "answers" not in estimate(replace(setup, answer_batch=0), packs).device
    weights = 2 * sum(tensor.numel for tensor in setup.all_tensors())
    assert found["answers"].bytes["deepspeed"] == pytest.approx(weights, rel=0.05)
    # Keys and values of 4 samples, 32 layers and one layer's copy, 3,072 numbers each in two bytes.
    tokens = 4 * (packs.longest + 96)
    assert found["answers"].bytes["activations"] == 2 * 3072 * 2 * 33 * tokens
