"""The published model's own numbers (see phi3v/golden/README.md of the reference material)."""

import importlib.util
import json
import re
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from data.conversation import IMAGE_TAG, Conversation
from data.manifest import CHAT_TEMPLATES
from train.model import Phi3VConfig, Phi3VForCausalLM, Phi3VProcessor
from train.model.image_embedding import global_views, normalise
from train.model.rotary import SampleRotary

CASES = (
    "text_short",
    "text_at_limit",
    "text_one_over_limit",
    "text_long",
    "one_image_short_rope",
    "one_image_16_crops",
    "one_image_one_row",
    "one_image_one_column",
    "two_images",
    "batch_text_right_padded",
    "batch_image_right_padded",
)


class Goldens:
    """The reference material, read when asked for."""

    def __init__(self, material: Path, folder: Path) -> None:
        self.root = material / "phi3v"
        self.golden = self.root / "golden"
        self.photos = str(material / "clothing" / "images" / "train")
        self.folder = folder
        self.images = _module(self.golden / "images.py")
        self.plan = json.loads((self.golden / "plan.json").read_text())
        shutil.copytree(self.golden / "tiny", folder)
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            shutil.copy(self.root / "tokenizer" / name, folder / name)
        self.processors = {crops: Phi3VProcessor.from_pretrained(folder, num_crops=crops) for crops in (4, 16)}

    def rows(self, kind: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads((self.golden / kind / "cases.json").read_text())
        return rows

    def picture(self, name: str) -> Image.Image:
        picture: Image.Image = self.images.make(self.plan["images"][name], self.photos)
        return picture


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_images", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def goldens(material: Path, tmp_path_factory: pytest.TempPathFactory) -> Goldens:
    return Goldens(material, tmp_path_factory.mktemp("goldens") / "tiny")


def unrolled(runs: list[Any]) -> list[int]:
    """The ids of a golden, in which a run of one image's id is written [id, count]."""
    return [token for run in runs for token in ([run[0]] * run[1] if isinstance(run, list) else [run])]


def test_pixels_are_the_published_processors(goldens: Goldens) -> None:
    samples = load_file(goldens.golden / "preprocess" / "samples.safetensors")
    for row in goldens.rows("preprocess"):
        picture = goldens.images.make(row["desc"], goldens.photos)
        assert goldens.images.digest(picture) == row["digest"], "another decoder: the input differs, not the model"
        made = goldens.processors[row["num_crops"]]("<|image_1|>", images=picture, return_tensors="pt")
        assert made["image_sizes"][0].tolist() == row["image_sizes"]
        assert int((made["input_ids"] == -1).sum()) == row["num_img_tokens"]
        own = normalise(made["pixel_values"])
        grid = (row["image_sizes"][0] // 336, row["image_sizes"][1] // 336)
        pixels = torch.cat((global_views(own, [grid], [0], 336), own))
        assert len(pixels) == row["real_crops"]
        key = f"{row['image']}.{row['num_crops']}"
        found = pixels.flatten()[samples[f"{key}.indices"]]
        assert (found - samples[f"{key}.values"]).abs().max() <= 1e-5, key
        assert (pixels.mean(dim=(2, 3)) - samples[f"{key}.crop_mean"]).abs().max() <= 1e-5, key


def test_ids_are_the_published_processors(goldens: Goldens) -> None:
    for row in goldens.rows("tokenize"):
        processor = goldens.processors[row["num_crops"]]
        pictures = [goldens.picture(name) for name in row["images"]]
        if row.get("raises"):
            with pytest.raises(ValueError, match="tag"):
                processor(row["text"], images=pictures)
            continue
        if "messages" in row:
            rendered = processor.apply_chat_template(
                row["messages"], add_generation_prompt=row["add_generation_prompt"]
            )
            assert rendered == row["text"]
        inputs = processor(row["text"], images=pictures or None, return_tensors="pt")
        assert inputs["input_ids"][0].tolist() == unrolled(row["input_ids"]), row["name"]


def as_messages(text: str) -> tuple[str, list[dict[str, str]], bool] | None:
    """The template, messages and generation prompt that render to a text, where there are any."""
    for name, end in (("phi3v", "\n"), ("bare", "")):
        turn = rf"<\|(user|system|assistant)\|>\n(.*?)<\|end\|>{end}"
        found = re.fullmatch(rf"((?:{turn})+)(<\|assistant\|>\n)?", text, re.DOTALL)
        if found:
            turns = re.findall(turn, found[1], re.DOTALL)
            return name, [{"role": role, "content": content} for role, content in turns], bool(found[4])
    return None


def test_messages_encode_to_the_published_ids(goldens: Goldens) -> None:
    tokenizer = (goldens.folder / "tokenizer.json").read_text()
    conversations = {name: Conversation(tokenizer, template) for name, template in CHAT_TEMPLATES.items()}
    compared = 0
    for row in goldens.rows("tokenize"):
        parsed = as_messages(row["text"])
        if row.get("raises") or parsed is None:
            continue
        name, messages, asks = parsed
        wanted = unrolled(row["input_ids"])
        used = [int(number) for number in IMAGE_TAG.findall(row["text"])]
        counts = [wanted.count(-number) // used.count(number) for number in range(1, len(row["images"]) + 1)]
        conversation = conversations[name]
        found = conversation.prompt(messages, counts) if asks else conversation.encode(messages, counts)[0]
        assert found.tolist() == wanted, row["name"]
        compared += 1
    assert compared >= 16


@pytest.mark.parametrize("flavour", ["3", "3.5"])
def test_rotary_tables_are_the_published_ones(goldens: Goldens, flavour: str) -> None:
    tables = load_file(goldens.golden / "rope" / "rope.safetensors")
    folder = goldens.root / {"3": "tokenizer", "3.5": "tokenizer_3_5"}[flavour]
    rotary = SampleRotary(Phi3VConfig.from_pretrained(folder))
    for branch, length in (("short", 4096), ("long", 4097)):
        positions = tables[f"{flavour}.{branch}.positions"].long().reshape(1, -1)
        cos, sin = rotary(positions, torch.tensor([[length]]), torch.float32)
        for found, name in ((cos, "cos"), (sin, "sin")):
            wanted = tables[f"{flavour}.{branch}.{name}"]
            assert torch.equal(found.reshape(-1)[: wanted.numel()], wanted.reshape(-1)), (branch, name)


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def model(request: pytest.FixtureRequest, goldens: Goldens) -> Phi3VForCausalLM:
    loaded = Phi3VForCausalLM.from_pretrained(goldens.folder, dtype=torch.float32, attn_implementation=request.param)
    loaded.requires_grad_(True)
    return loaded


@pytest.mark.parametrize("name", CASES)
def test_logits_loss_and_gradients_are_the_published_models(
    goldens: Goldens, model: Phi3VForCausalLM, name: str
) -> None:
    case = next(row for row in goldens.rows("cases") if row["name"] == name)
    tensors = load_file(goldens.golden / "cases" / f"{name}.safetensors")
    inputs: dict[str, Any] = {key: tensors[key] for key in ("input_ids", "attention_mask")}
    if case["image_sizes"]:
        pictures = [[goldens.picture(picture) for picture in one.get("images", [])] for one in case["samples"]]
        texts = [one["text"] for one in case["samples"]]
        made = goldens.processors[case["num_crops"]](texts, images=pictures, padding=True, return_tensors="pt")
        assert torch.equal(made["input_ids"], inputs["input_ids"])
        inputs = dict(made)
    model.zero_grad()
    output = model(**inputs, labels=tensors["labels"], output_hidden_states=True)
    output.loss.backward()
    present = tensors["attention_mask"].bool()
    rows = tensors["rows"]
    kept = present[:, rows]
    logits = output.logits.detach()
    assert (logits[:, rows][:, :, tensors["vocab"]] - tensors["logits"]).abs()[kept].max() <= 1e-4
    assert (logits.logsumexp(-1) - tensors["logsumexp"]).abs()[present].max() <= 1e-4
    assert output.loss.item() == pytest.approx(case["loss"], abs=1e-5)
    for found, wanted in zip(output.hidden_states, tensors["hidden"], strict=True):
        assert (found[:, rows[::3]] - wanted).abs()[present[:, rows[::3]]].max() <= 1e-4
    assert_same_gradients(model, case, tensors)


def assert_same_gradients(model: Phi3VForCausalLM, case: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    without = sorted(name for name, parameter in model.named_parameters() if parameter.grad is None)
    assert without == sorted(case["no_grad"])
    for name, parameter in model.named_parameters():
        # The true gradient of k_proj.bias is zero: what stands there is rounding.
        if parameter.grad is None or name.endswith("k_proj.bias"):
            continue
        norm = case["grad_norms"][name]
        assert parameter.grad.norm().item() == pytest.approx(norm, rel=1e-3, abs=1e-9), name
        sampled = parameter.grad.flatten()[tensors[f"grad_index.{name}"]]
        worst = (sampled - tensors[f"grad.{name}"]).abs().max().item()
        assert worst <= 1e-3 * max(norm, float(np.abs(tensors[f"grad.{name}"]).max())) + 1e-9, name


def test_loading_and_saving_the_golden_checkpoint_keeps_every_byte(goldens: Goldens, tmp_path: Path) -> None:
    Phi3VForCausalLM.from_pretrained(goldens.folder, dtype="auto").save_pretrained(tmp_path)
    wanted = load_file(goldens.golden / "tiny" / "model.safetensors")
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def test_the_published_files_are_written_back(goldens: Goldens, tmp_path: Path) -> None:
    goldens.processors[16].save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        assert (tmp_path / name).read_bytes() == (goldens.folder / name).read_bytes()
