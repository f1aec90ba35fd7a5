import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from tests.factories.small_models import pack, sample, small_folder, small_model
from train.model import Phi3VForCausalLM
from train.model.adapter import AdapterError
from train.model.lora import (
    LORA_TARGETS,
    PARTS,
    adapted_layers,
    add_lora,
    check_adapter,
    merge_lora,
    part_targets,
    parts_of,
    set_trainable,
)

# Two decoder layers; three tower layers, of which the last is never run.
LAYERS = {"text_attention": 4, "text_mlp": 4, "projection": 2, "vision": 12}
KINDS = [{}, {"rslora": True}, {"dora": True}, {"rslora": True, "dora": True}]
BATCH = pack([sample(1, 4, [(2, 1)]), sample(2, 9)])


def adapted(folder: Path, **options: Any) -> PeftModel:
    """The folder's model with adapters everywhere that do something."""
    model, _ = add_lora(Phi3VForCausalLM.from_pretrained(folder), 4, 8, 0.0, list(LORA_TARGETS), **options)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model.eval()


def test_every_part_has_exactly_its_layers() -> None:
    model = small_model()
    found = part_targets(model, list(LORA_TARGETS))
    assert {part: len(names) for part, names in found.items()} == LAYERS
    assert not any(".layers.2." in name for name in found["vision"])


@pytest.mark.parametrize("part", sorted(LORA_TARGETS))
def test_adapters_go_to_the_named_part_alone(part: str) -> None:
    model, counts = add_lora(small_model(), 2, 4, 0.1, [part])
    assert counts == {part: LAYERS[part]}
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trainable) == 2 * LAYERS[part]
    assert {parts_of(name) for name in trainable} == {part.split("_")[0]}


def test_an_unknown_part_names_the_allowed_ones() -> None:
    with pytest.raises(ValueError, match="text_attention, text_mlp, projection, vision"):
        part_targets(small_model(), ["text"])


@pytest.mark.parametrize("options", KINDS)
def test_a_saved_adapter_loads_in_plain_peft(tmp_path: Path, options: dict[str, bool]) -> None:
    folder = small_folder(tmp_path / "small")
    model = adapted(folder, **options)
    model.save_pretrained(tmp_path / "adapter")
    plain = PeftModel.from_pretrained(Phi3VForCausalLM.from_pretrained(folder), tmp_path / "adapter")
    assert torch.equal(plain.eval()(**BATCH).logits, model(**BATCH).logits)


@pytest.mark.parametrize("options", KINDS)
def test_merging_keeps_the_outputs_and_the_published_names(tmp_path: Path, options: dict[str, bool]) -> None:
    folder = small_folder(tmp_path / "small", spread=0.05)
    model = adapted(folder, **options)
    wanted = model(**BATCH).logits
    merged = merge_lora(model)
    assert (merged(**BATCH).logits - wanted).abs().max() <= 1e-5
    merged.save_pretrained(tmp_path / "merged")
    assert (Phi3VForCausalLM.from_pretrained(tmp_path / "merged")(**BATCH).logits - wanted).abs().max() <= 1e-5


def test_rslora_multiplies_by_alpha_over_the_root_of_the_rank() -> None:
    plain, root = (add_lora(small_model(), 4, 8, 0.0, ["text_mlp"], rslora=wanted)[0] for wanted in (False, True))
    found = [model.base_model.model.model.layers[0].mlp.down_proj.scaling["default"] for model in (plain, root)]
    assert found == [2.0, 4.0]


@pytest.mark.parametrize("options", KINDS)
def test_training_goes_on_from_a_saved_adapter(tmp_path: Path, options: dict[str, bool]) -> None:
    folder = small_folder(tmp_path / "small")
    first = adapted(folder, **options)
    first.save_pretrained(tmp_path / "adapter")
    base = Phi3VForCausalLM.from_pretrained(folder)
    model, counts = add_lora(base, 4, 8, 0.0, list(LORA_TARGETS), adapter=tmp_path / "adapter", **options)
    assert counts == adapted_layers(model) == LAYERS
    assert torch.equal(model.eval()(**BATCH).logits, first(**BATCH).logits)
    model.train()(**BATCH, return_logits=False, loss_reduction="sum").loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    assert not any(parameter.requires_grad for name, parameter in model.named_parameters() if "lora_" not in name)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of rank 4 and alpha 8 on the text layers."""
    model, _ = add_lora(small_model(), 4, 8)
    folder = tmp_path_factory.mktemp("saved") / "adapter"
    model.save_pretrained(folder)
    return folder


ASKED: dict[str, Any] = {
    "rank": 4,
    "alpha": 8,
    "parts": ["text_attention", "text_mlp"],
    "rslora": False,
    "dora": False,
}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"rank": 8}, "rank is 4, asked for 8"),
        ({"alpha": 16}, "alpha is 8, asked for 16"),
        ({"rslora": True}, "rslora is False, asked for True"),
        ({"dora": True}, "dora is False, asked for True"),
        ({"parts": ["vision"]}, "its parts are text_attention, text_mlp, asked for vision"),
    ],
)
def test_an_adapter_of_other_settings_is_refused_with_both(saved: Path, asked: dict[str, Any], message: str) -> None:
    check_adapter(saved, **ASKED)
    with pytest.raises(AdapterError, match=message):
        check_adapter(saved, **ASKED | asked)
    with pytest.raises(AdapterError, match=message):
        add_lora(small_model(), **ASKED | asked, adapter=saved)


def copied(saved: Path, folder: Path, **settings: Any) -> Path:
    """A saved adapter with settings changed."""
    folder.mkdir()
    values = json.loads((saved / "adapter_config.json").read_text()) | settings
    (folder / "adapter_config.json").write_text(json.dumps(values))
    save_file(load_file(saved / "adapter_model.safetensors"), folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "IA3"}, "'IA3'"),
        ({"alpha_pattern": {"qkv_proj": 3}}, "alpha_pattern"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias"),
    ],
)
def test_an_adapter_of_another_kind_is_refused(
    saved: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(AdapterError, match=message):
        check_adapter(copied(saved, tmp_path / "other", **settings), **ASKED)


def test_an_adapter_that_is_not_whole_is_refused_by_the_file(saved: Path, tmp_path: Path) -> None:
    folder = copied(saved, tmp_path / "cut")
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(AdapterError, match=r"adapter_model\.safetensors: cut off"):
        check_adapter(folder, **ASKED)
    file.unlink()
    with pytest.raises(AdapterError, match=r"adapter_model\.safetensors: not there"):
        check_adapter(folder, **ASKED)


@pytest.mark.parametrize(
    ("change", "message"), [("fewer", r"1 missing .*down_proj"), ("wider", "1 of another shape .*down_proj")]
)
def test_an_adapter_of_another_model_is_refused_with_the_names(
    saved: Path, tmp_path: Path, change: str, message: str
) -> None:
    folder = copied(saved, tmp_path / "other")
    tensors = load_file(folder / "adapter_model.safetensors")
    name = "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"
    if change == "fewer":
        del tensors[name]
    else:
        tensors[name] = torch.zeros(65, 4)
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match=message):
        add_lora(small_model(), **ASKED, adapter=folder)


def test_putting_adapters_on_a_checkpointed_model_warns_of_nothing() -> None:
    model = small_model()
    model.set_checkpointing(decoder=True, vision=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        add_lora(model, 2, 4)


def test_checkpointing_works_where_only_adapters_train(tmp_path: Path) -> None:
    model, _ = add_lora(small_model(), 2, 4, 0.0, ["text_attention"])
    model.base_model.model.set_checkpointing(decoder=True, vision=True)
    model.train()(**BATCH, return_logits=False).loss.backward()
    assert all(parameter.grad is not None for name, parameter in model.named_parameters() if "lora_" in name)


@pytest.mark.parametrize("before", [True, False])
def test_checkpointing_keeps_nothing_of_a_tower_that_does_not_train(before: bool) -> None:
    model = small_model()
    if before:
        model.set_checkpointing(decoder=True, vision=True)
    adapted, _ = add_lora(model, 2, 4, 0.0, ["text_attention"])
    model.set_checkpointing(decoder=True, vision=True)
    asked = []
    for module in (model.model.embed_tokens, model.model.vision_embed_tokens):
        module.register_forward_hook(lambda module, inputs, output: asked.append(output.requires_grad))
    adapted.train()(**BATCH, return_logits=False)
    assert asked == [False, False]


def test_checkpointing_keeps_nothing_of_parts_that_are_frozen() -> None:
    model = small_model()
    set_trainable(model, ["text", "head"])
    model.set_checkpointing(decoder=True, vision=True)
    asked = []
    model.model.vision_embed_tokens.register_forward_hook(lambda module, inputs, output: asked.append(output))
    model.train()(**BATCH, return_logits=False).loss.backward()
    assert [output.requires_grad for output in asked] == [False]


@pytest.mark.parametrize("part", PARTS)
def test_freezing_by_part_leaves_the_others_without_gradient(part: str) -> None:
    model = small_model()
    counts = set_trainable(model, [part])
    assert [name for name, count in counts.items() if count] == [part]
    model(**BATCH).loss.backward()
    touched = {parts_of(name) for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert touched == {part}


def test_every_parameter_is_in_one_part() -> None:
    assert {parts_of(name) for name, _ in small_model().named_parameters()} == set(PARTS)
    with pytest.raises(ValueError, match="no part"):
        parts_of("transformer.h.0")
