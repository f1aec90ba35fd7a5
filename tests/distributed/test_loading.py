"""Loading under ZeRO-3: each rank holds its slices of the file's values, and never much more than those."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.factories.memory import own_bytes, reset_peak, status_bytes
from tests.factories.ranks import join, run_ranks, zero3_settings
from tests.factories.small_models import small_folder
from train.model import Phi3VForCausalLM
from train.model.tiny import Sizes, tiny_config

# Name: the folder's files, the precision trained in, what ds_configs/zero3.json is changed by.
LOADINGS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "one file": ("single", "fp32", {}),
    "several files, rounded": ("sharded", "bf16", {}),
    "widened": ("half", "fp32", {}),
    "kept in the host's memory": ("single", "fp32", {"offload_param": {"device": "cpu", "pin_memory": True}}),
    "a second slice": ("single", "fp32", {"zero_hpz_partition_size": 2}),
    "small ones stay gathered": ("single", "fp32", {"stage3_param_persistence_threshold": 10_000}),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as one file, as several, as bfloat16, and cut off."""
    root = tmp_path_factory.mktemp("models")
    model = Phi3VForCausalLM.from_pretrained(small_folder(root / "single"))
    model.generation_config.max_new_tokens = 7
    model.generation_config.save_pretrained(root / "single")
    for name, dtype, size in (("sharded", torch.float32, "100KB"), ("half", torch.bfloat16, "5GB")):
        model.to(dtype).save_pretrained(root / name, max_shard_size=size)
    for name in ("cut", "missing", "llama"):
        shutil.copytree(root / "single", root / name)
    with (root / "cut/model.safetensors").open("r+b") as file:
        file.truncate(file.seek(0, 2) - 1)
    tensors = load_file(root / "missing/model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, root / "missing/model.safetensors", metadata={"format": "pt"})
    text = (root / "llama/config.json").read_text()
    (root / "llama/config.json").write_text(text.replace('"phi3_v"', '"llama"'))
    return root


@pytest.fixture(scope="module")
def results(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What both ranks found (see `main`)."""
    out = tmp_path_factory.mktemp("out")
    random_checkpoint(folders / "larger", torch.float32, hidden=256, layers=36)
    run_ranks(__file__, folders, out)
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(2)]


def random_checkpoint(folder: Path, dtype: torch.dtype, **sizes: int) -> None:
    """A model with random weights, in files of at most 300 MB."""
    wanted = {"vision_hidden": 32, "vision_layers": 3, "crop_size": 28, "patch_size": 7, "num_crops": 4, "vocab": 4000}
    config = tiny_config(Sizes(**wanted | sizes), (wanted | sizes)["vocab"], {"<|endoftext|>": 0})
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        Phi3VForCausalLM(config).save_pretrained(folder, max_shard_size="300MB")
    finally:
        torch.set_default_dtype(default)


def bound(folder: Path) -> float:
    """The bytes that a rank of two may hold: 60 % of the checkpoint as stored and its largest tensor."""
    from train.model.weights import tensor_places

    places = tensor_places(sorted(folder.glob("*.safetensors"))).values()
    sizes = [place.numel * place.dtype.itemsize for place in places]
    return 0.6 * sum(sizes) + max(sizes)


@pytest.mark.parametrize("name", LOADINGS)
def test_every_rank_holds_its_slices_of_the_files_values(results: list[dict[str, Any]], name: str) -> None:
    for found in results:
        assert found[name]["parameters"] > 50
        assert found[name]["second slices"] == (found[name]["parameters"] if name == "a second slice" else 0)
        assert found[name]["wrong"] == []


def test_configurations_and_frozen_parameters_are_those_of_plain_loading(results: list[dict[str, Any]]) -> None:
    for found in results:
        assert found["config"] == found["plain config"]
        assert found["generation_config"]["max_new_tokens"] == 7
        assert found["generation_config"] == found["plain generation_config"]
        assert found["frozen"] == found["plain frozen"]
        assert found["frozen"]


def test_a_model_loads_ready_to_be_trained(results: list[dict[str, Any]]) -> None:
    assert all(found["training"] for found in results)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cut", "cut/model.safetensors: cut off"),
        ("missing", "1 missing: model.norm.weight"),
        ("llama", "llama/config.json: model_type 'llama' is another family"),
    ],
)
def test_a_folder_that_one_rank_finds_damaged_stops_both_with_its_message(
    results: list[dict[str, Any]], name: str, words: str
) -> None:
    for found in results:
        assert "model.path: " in found["errors"][name]
        assert words in found["errors"][name]


def test_no_rank_holds_the_whole_model_while_loading(results: list[dict[str, Any]], folders: Path) -> None:
    for found in results:
        assert found["peak"] < bound(folders / "larger")


@pytest.mark.soak
def test_no_rank_holds_the_whole_of_a_gigabyte_while_loading(tmp_path: Path) -> None:
    random_checkpoint(tmp_path / "large", torch.bfloat16, hidden=1024, layers=38, vocab=16000)
    run_ranks(__file__, tmp_path / "large", tmp_path)
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found["peak"] < bound(tmp_path / "large")
        assert found["uss"] < bound(tmp_path / "large")


def main() -> None:
    """On each rank: load in every way, or one large folder, and write what was found."""
    folder, out = map(Path, sys.argv[1:])
    world = join()
    if (folder / "config.json").is_file():
        found = measure(folder, "bf16", world)
    else:
        found = load_all(folder, world)
        found |= measure(folder / "larger", "fp32", world)
    (out / f"{world.rank}.json").write_text(json.dumps(found))


def load_all(folder: Path, world: Any) -> dict[str, Any]:
    """The small model in every way."""
    from data.schema import UserError
    from train.engine import Engine, load_model

    plain = Phi3VForCausalLM.from_pretrained(folder / "single")
    found: dict[str, Any] = {f"plain {key}": value for key, value in facts(plain).items()}
    for name, (files, precision, changes) in LOADINGS.items():
        config, deepspeed = zero3_settings(precision, **changes)
        model: Any = load_model(config, folder / files, deepspeed, world)
        found[name] = check_slices(model, folder / files, world)
        if name == "one file":
            found |= facts(model)
            found["training"] = Engine(model, config, deepspeed, world).deepspeed.module.training
    config, deepspeed = zero3_settings()
    found["errors"] = {}
    for name in ("cut", "missing", "llama"):
        try:
            load_model(config, folder / ("single" if world.first else name), deepspeed, world)
        except UserError as error:
            found["errors"][name] = str(error)
    return found


def facts(model: Any) -> dict[str, Any]:
    """What comes with the weights."""
    return {
        "config": model.config.to_dict(),
        "generation_config": model.generation_config.to_dict(),
        "frozen": [name for name, parameter in model.named_parameters() if not parameter.requires_grad],
    }


def check_slices(model: Any, folder: Path, world: Any) -> dict[str, Any]:
    """How many parameters there are, and the names of those whose slices differ in a bit from the files' values."""
    stored: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        stored |= load_file(file)
    wrong = []
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        whole = stored.pop(name).to(parameter.dtype).flatten()
        for held in (parameter.ds_tensor, parameter.ds_secondary_tensor):
            if held is not None:
                part = whole[world.rank * held.numel() : (world.rank + 1) * held.numel()]
                same = torch.equal(held[: len(part)], part) and not held[len(part) :].any()
                wrong += [] if same and parameter.numel() == 0 else [name]
    seconds = sum(parameter.ds_secondary_tensor is not None for parameter in parameters.values())
    return {"parameters": len(parameters), "second slices": seconds, "wrong": wrong + list(stored)}


def measure(folder: Path, precision: str, world: Any) -> dict[str, Any]:
    """Load; the most of this process's memory that was used more than before, in bytes.

    peak: of all that is resident, kept by the kernel, so that no moment is missed. uss: of what no other process
    shares, at the end.
    """
    from train.engine import load_model

    config, deepspeed = zero3_settings(precision)
    world.barrier()
    before, resident = own_bytes(), status_bytes("VmRSS")
    reset_peak()
    model = load_model(config, folder, deepspeed, world)
    peak, uss = status_bytes("VmHWM") - resident, own_bytes() - before
    assert all(parameter.numel() == 0 for parameter in model.parameters())
    return {"peak": peak, "uss": uss}


if __name__ == "__main__":
    main()
