from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from tests.factories.small_models import pack, sample, small_folder, small_model
from train.model import Phi3VForCausalLM
from train.model.lora import (
    LORA_TARGETS,
    PARTS,
    adapted_layers,
    add_lora,
    load_lora,
    merge_lora,
    part_targets,
    parts_of,
    set_trainable,
)

# Two decoder layers; three tower layers, of which the last is never run.
LAYERS = {"text_attention": 4, "text_mlp": 4, "projection": 2, "vision": 12}
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


@pytest.mark.parametrize("options", [{}, {"rslora": True}, {"dora": True}])
def test_a_saved_adapter_loads_in_plain_peft(tmp_path: Path, options: dict[str, bool]) -> None:
    folder = small_folder(tmp_path / "small")
    model = adapted(folder, **options)
    model.save_pretrained(tmp_path / "adapter")
    plain = PeftModel.from_pretrained(Phi3VForCausalLM.from_pretrained(folder), tmp_path / "adapter")
    assert torch.equal(plain.eval()(**BATCH).logits, model(**BATCH).logits)


def test_merging_keeps_the_outputs_and_the_published_names(tmp_path: Path) -> None:
    folder = small_folder(tmp_path / "small", spread=0.05)
    model = adapted(folder)
    wanted = model(**BATCH).logits
    merged = merge_lora(model)
    assert (merged(**BATCH).logits - wanted).abs().max() <= 1e-5
    merged.save_pretrained(tmp_path / "merged")
    assert (Phi3VForCausalLM.from_pretrained(tmp_path / "merged")(**BATCH).logits - wanted).abs().max() <= 1e-5


def test_training_goes_on_from_a_saved_adapter(tmp_path: Path) -> None:
    folder = small_folder(tmp_path / "small")
    adapted(folder).save_pretrained(tmp_path / "adapter")
    model = load_lora(Phi3VForCausalLM.from_pretrained(folder), str(tmp_path / "adapter"), trainable=True)
    assert adapted_layers(model) == LAYERS
    model.train()(**BATCH, return_logits=False, loss_reduction="sum").loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    assert not any(parameter.requires_grad for name, parameter in model.named_parameters() if "lora_" not in name)


def test_checkpointing_works_where_only_adapters_train(tmp_path: Path) -> None:
    model, _ = add_lora(small_model(), 2, 4, 0.0, ["text_attention"])
    model.base_model.model.set_checkpointing(decoder=True, vision=True)
    model.train()(**BATCH, return_logits=False).loss.backward()
    assert all(parameter.grad is not None for name, parameter in model.named_parameters() if "lora_" in name)


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
