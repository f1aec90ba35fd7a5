import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from tests.factories.published_tensors import published_tensors
from tests.factories.small_models import pack, sample, small_folder
from train.model import Phi3VConfig, Phi3VForCausalLM
from train.model.weights import CheckpointError, checkpoint_shapes, compare, official_shapes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return small_folder(tmp_path / "small")


def change(folder: Path, **tensors: torch.Tensor | None) -> None:
    """Replace tensors of a checkpoint, or take them out with None."""
    file = folder / "model.safetensors"
    held = load_file(file) | {name.replace("__", "."): value for name, value in tensors.items() if value is not None}
    for name, value in tensors.items():
        if value is None:
            del held[name.replace("__", ".")]
    save_file(held, file, metadata={"format": "pt"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shard_size", ["5GB", "100KB"])
def test_saving_what_was_loaded_gives_the_same_bytes(
    folder: Path, tmp_path: Path, dtype: torch.dtype, shard_size: str
) -> None:
    Phi3VForCausalLM.from_pretrained(folder, dtype=dtype).save_pretrained(tmp_path / "a", max_shard_size=shard_size)
    Phi3VForCausalLM.from_pretrained(tmp_path / "a", dtype="auto").save_pretrained(tmp_path / "b")
    first = {
        name: tensor for file in (tmp_path / "a").glob("*.safetensors") for name, tensor in load_file(file).items()
    }
    second = load_file(tmp_path / "b" / "model.safetensors")
    original = load_file(folder / "model.safetensors")
    assert first.keys() == second.keys() == original.keys()
    assert any("vision_model.pre_layrnorm" in name for name in first)
    for name, tensor in original.items():
        assert first[name].dtype == second[name].dtype == dtype
        assert torch.equal(first[name], tensor.to(dtype))
        assert torch.equal(second[name], first[name])


def test_the_auto_classes_find_the_model(folder: Path) -> None:
    assert isinstance(AutoConfig.from_pretrained(folder), Phi3VConfig)
    assert isinstance(AutoModelForCausalLM.from_pretrained(folder), Phi3VForCausalLM)
    assert isinstance(AutoModelForImageTextToText.from_pretrained(folder), Phi3VForCausalLM)


def test_remote_code_and_attention_of_the_file_are_not_followed(folder: Path) -> None:
    file = folder / "config.json"
    settings = json.loads(file.read_text()) | {
        "auto_map": {"AutoModelForCausalLM": "modeling_phi3_v.Phi3VForCausalLM"},
        "_attn_implementation": "flash_attention_2",
    }
    file.write_text(json.dumps(settings))
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    assert model.model.layer_config._attn_implementation == "segments_eager"
    assert Phi3VForCausalLM.from_pretrained(folder).config._attn_implementation == "sdpa"
    assert "auto_map" not in model.config.to_dict()


def test_a_missing_tensor_is_named(folder: Path) -> None:
    change(folder, model__norm__weight=None)
    with pytest.raises(CheckpointError, match=r"1 missing: model\.norm\.weight"):
        Phi3VForCausalLM.from_pretrained(folder)


def test_an_unexpected_tensor_is_named(folder: Path) -> None:
    change(folder, model__extra=torch.zeros(1))
    with pytest.raises(CheckpointError, match=r"1 unexpected: model\.extra"):
        Phi3VForCausalLM.from_pretrained(folder)


def test_a_tensor_of_another_shape_is_named_with_both(folder: Path) -> None:
    change(folder, model__norm__weight=torch.zeros(63))
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight \[63\] \(needs \[64\]\)"):
        Phi3VForCausalLM.from_pretrained(folder)


def test_the_tied_copy_of_the_embedding_is_ignored(folder: Path) -> None:
    change(folder, model__vision_embed_tokens__wte__weight=torch.zeros(404, 64))
    Phi3VForCausalLM.from_pretrained(folder)


def test_a_cut_off_file_is_named(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cut off"):
        Phi3VForCausalLM.from_pretrained(folder)


def test_a_checkpoint_of_another_family_is_refused(folder: Path) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_type": "llama"}))
    with pytest.raises(CheckpointError, match="another family"):
        Phi3VForCausalLM.from_pretrained(folder)


def test_a_shard_that_is_not_there_is_named(folder: Path, tmp_path: Path) -> None:
    Phi3VForCausalLM.from_pretrained(folder).save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    next((tmp_path / "shards").glob("model-00002-*")).unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-.*not there"):
        Phi3VForCausalLM.from_pretrained(tmp_path / "shards")


@pytest.mark.parametrize(
    "scaling",
    [
        {"type": "yarn", "short_factor": [1.0] * 16, "long_factor": [1.0] * 16},
        {"type": "su", "short_factor": [1.0] * 16},
        {"type": "su", "short_factor": [1.0] * 15, "long_factor": [1.0] * 16},
    ],
)
def test_other_rope_types_are_refused(folder: Path, scaling: dict[str, object]) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rope_scaling": scaling}))
    with pytest.raises(ValueError, match="rope_scaling"):
        Phi3VForCausalLM.from_pretrained(folder)


def test_the_configuration_is_written_as_it_was_read(folder: Path, tmp_path: Path) -> None:
    Phi3VConfig.from_pretrained(folder).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    read = json.loads((folder / "config.json").read_text())
    assert written == read
    assert written["rope_scaling"].keys() == {"type", "short_factor", "long_factor"}


def test_a_reloaded_model_gives_the_same_logits(folder: Path, tmp_path: Path) -> None:
    model = Phi3VForCausalLM.from_pretrained(folder)
    shutil.copytree(folder, tmp_path / "copy")
    batch = pack([sample(1, 4, [(2, 1)])])
    assert torch.equal(model(**batch).logits, Phi3VForCausalLM.from_pretrained(tmp_path / "copy")(**batch).logits)


@pytest.mark.parametrize("published", ["tokenizer", "tokenizer_3_5"])
def test_the_real_models_have_592_tensors_of_the_published_names(material: Path, published: str) -> None:
    shapes = official_shapes(Phi3VConfig.from_pretrained(material / "phi3v" / published))
    assert len(shapes) == 592
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 4_146_621_440
    assert shapes == published_tensors()


def test_names_are_compared_both_ways(folder: Path) -> None:
    shapes = checkpoint_shapes(folder)
    compare("here", shapes, shapes)
    with pytest.raises(CheckpointError, match=r"here: .*1 missing: b; 1 unexpected: a"):
        compare("here", {"a": (1,)}, {"b": (1,)})
