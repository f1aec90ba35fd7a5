"""The published model's own numbers (phi3v/golden/README.md of the reference material), and how far ours are off."""

import csv
import importlib.util
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from data.geometry import canvas, image_tokens
from train.model import Phi3VConfig, Phi3VForCausalLM, Phi3VProcessor
from train.model.image_embedding import global_views, normalise
from train.model.rotary import SampleRotary

CROP = 336
FLAVOURS = {"3": "tokenizer", "3.5": "tokenizer_3_5"}
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
# The largest differences that are taken, all absolute but the gradients'.
BOUNDS = {
    "wrong ids": 0.0,
    "wrong sizes": 0.0,
    "pixels": 1e-5,
    "crops' means, deviations": 1e-5,
    "rotary tables": 0.0,
    "logits": 1e-4,
    "logsumexp": 1e-4,
    "hidden states": 1e-4,
    "loss": 1e-5,
    "gradients, relative": 1e-3,
    "changed tensors": 0.0,
}


class Goldens:
    """The reference material, read when asked for."""

    def __init__(self, material: Path, folder: Path) -> None:
        """`folder`: is made, and holds the small golden model as a whole model folder."""
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
        """The cases of a kind: preprocess, tokenize or cases."""
        rows: list[dict[str, Any]] = json.loads((self.golden / kind / "cases.json").read_text())
        return rows

    def picture(self, name: str) -> Image.Image:
        """One of the plan's pictures."""
        picture: Image.Image = self.images.make(self.plan["images"][name], self.photos)
        return picture

    def model(self, attention: str) -> Phi3VForCausalLM:
        """The small golden model in float32, all of whose parameters ask for gradients."""
        model = Phi3VForCausalLM.from_pretrained(self.folder, dtype=torch.float32, attn_implementation=attention)
        model.requires_grad_(True)
        return model


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_images", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def unrolled(runs: list[Any]) -> list[int]:
    """The ids of a golden, in which a run of one image's id is written [id, count]."""
    return [token for run in runs for token in ([run[0]] * run[1] if isinstance(run, list) else [run])]


def wrong_ids(goldens: Goldens) -> Iterator[tuple[str, bool]]:
    """Each prompt's name, and whether its ids, its rendered text or its refusal differ."""
    for row in goldens.rows("tokenize"):
        processor = goldens.processors[row["num_crops"]]
        pictures = [goldens.picture(name) for name in row["images"]]
        try:
            ids = processor(row["text"], images=pictures or None)["input_ids"][0].tolist()
        except ValueError as error:
            yield row["name"], not (row.get("raises") and "tag" in str(error))
            continue
        wrong = row.get("raises") or ids != unrolled(row["input_ids"])
        if "messages" in row:
            prompt = row["add_generation_prompt"]
            rendered = processor.apply_chat_template(row["messages"], add_generation_prompt=prompt)
            wrong = wrong or rendered != row["text"]
        yield row["name"], bool(wrong)


def wrong_sizes(goldens: Goldens) -> Iterator[tuple[str, bool]]:
    """Each of the published size cases, and whether canvas or number of tokens differ."""
    with (goldens.golden / "sizes" / "sizes.csv").open() as lines:
        for row in csv.DictReader(lines):
            case = {name: int(value) for name, value in row.items()}
            place = canvas(case["width"], case["height"], case["num_crops"])
            found = (place.width, place.height, image_tokens(place.rows, place.columns))
            wanted = (case["padded_width"], case["padded_height"], case["num_img_tokens"])
            yield f"{case['width']}×{case['height']} at {case['num_crops']}", found != wanted


def pixel_differences(goldens: Goldens) -> Iterator[tuple[str, dict[str, float]]]:
    """Each picture's worst differences: of sampled values, and of every crop's mean and deviation.

    Raises ValueError where the picture itself is another, and where sizes or numbers of tokens differ.
    """
    samples = load_file(goldens.golden / "preprocess" / "samples.safetensors")
    for row in goldens.rows("preprocess"):
        key = f"{row['image']}.{row['num_crops']}"
        picture = goldens.images.make(row["desc"], goldens.photos)
        if goldens.images.digest(picture) != row["digest"]:
            raise ValueError(f"{key}: another JPEG decoder: the input differs, not the model")
        made = goldens.processors[row["num_crops"]]("<|image_1|>", images=picture, return_tensors="pt")
        own = normalise(made["pixel_values"])
        grid = (row["image_sizes"][0] // CROP, row["image_sizes"][1] // CROP)
        pixels = torch.cat((global_views(own, [grid], [0], CROP), own))
        found = made["image_sizes"][0].tolist(), int((made["input_ids"] == -1).sum()), len(pixels)
        if found != (row["image_sizes"], row["num_img_tokens"], row["real_crops"]):
            raise ValueError(f"{key}: found size, tokens and crops {found}")
        values = largest(pixels.flatten()[samples[f"{key}.indices"]] - samples[f"{key}.values"])
        means = largest(pixels.mean(dim=(2, 3)) - samples[f"{key}.crop_mean"])
        deviations = largest(pixels.std(dim=(2, 3)) - samples[f"{key}.crop_std"])
        yield key, {"pixels": values, "crops' means, deviations": worst((means, deviations))}


def rotary_differences(goldens: Goldens) -> Iterator[tuple[str, float]]:
    """Each published table's worst difference: of both models, short and long, cos and sin."""
    tables = load_file(goldens.golden / "rope" / "rope.safetensors")
    for flavour, folder in FLAVOURS.items():
        rotary = SampleRotary(Phi3VConfig.from_pretrained(goldens.root / folder))
        for branch, length in (("short", 4096), ("long", 4097)):
            positions = tables[f"{flavour}.{branch}.positions"].long().reshape(1, -1)
            made = rotary(positions, torch.tensor([[length]]), torch.float32)
            for name, found in zip(("cos", "sin"), made, strict=True):
                wanted = tables[f"{flavour}.{branch}.{name}"].flatten()
                yield f"{flavour} {branch} {name}", largest(found.flatten()[: wanted.numel()] - wanted)


def case_differences(goldens: Goldens, model: Phi3VForCausalLM, name: str) -> dict[str, float]:
    """The worst difference of one forward and backward pass, by the names of `BOUNDS`.

    Raises ValueError where ids differ, or where other parameters than published get no gradient.
    """
    case = next(row for row in goldens.rows("cases") if row["name"] == name)
    tensors = load_file(goldens.golden / "cases" / f"{name}.safetensors")
    model.zero_grad()
    output = model(**_inputs(goldens, case, tensors), labels=tensors["labels"], output_hidden_states=True)
    output.loss.backward()
    present = tensors["attention_mask"].bool()
    rows = tensors["rows"]
    logits = output.logits.detach()
    hidden = [
        largest((found.detach()[:, rows[::3]] - wanted)[present[:, rows[::3]]])
        for found, wanted in zip(output.hidden_states, tensors["hidden"], strict=True)
    ]
    return {
        "logits": largest((logits[:, rows][:, :, tensors["vocab"]] - tensors["logits"])[present[:, rows]]),
        "logsumexp": largest((logits.logsumexp(-1) - tensors["logsumexp"])[present]),
        "hidden states": worst(hidden),
        "loss": abs(output.loss.item() - case["loss"]),
        "gradients, relative": worst(_gradient_differences(model, case, tensors)),
    }


def _inputs(goldens: Goldens, case: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    if not case["image_sizes"]:
        return {key: tensors[key] for key in ("input_ids", "attention_mask")}
    pictures = [[goldens.picture(picture) for picture in one.get("images", [])] for one in case["samples"]]
    texts = [one["text"] for one in case["samples"]]
    made = goldens.processors[case["num_crops"]](texts, images=pictures, padding=True, return_tensors="pt")
    if not torch.equal(made["input_ids"], tensors["input_ids"]):
        raise ValueError(f"{case['name']}: the prompt's ids are not the published ones")
    return dict(made)


def _gradient_differences(model: Phi3VForCausalLM, case: dict[str, Any], tensors: dict[str, Tensor]) -> Iterator[float]:
    """Of each parameter: the differences of its gradient's norm and sampled values, over the published norm."""
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    if without != set(case["no_grad"]):
        raise ValueError(f"{case['name']}: gradients are missing or too many: {without ^ set(case['no_grad'])}")
    for name, parameter in model.named_parameters():
        # The true gradient of k_proj.bias is zero: what stands there is rounding.
        if parameter.grad is None or name.endswith("k_proj.bias"):
            continue
        norm = case["grad_norms"][name]
        sampled = parameter.grad.flatten()[tensors[f"grad_index.{name}"]]
        off = worst((abs(parameter.grad.norm().item() - norm), largest(sampled - tensors[f"grad.{name}"])))
        yield off / max(norm, 1e-6)


def changed_tensors(goldens: Goldens) -> Iterator[tuple[str, bool]]:
    """Every tensor's name, and whether loading and saving change its name, its dtype or a byte of it."""
    with tempfile.TemporaryDirectory() as folder:
        Phi3VForCausalLM.from_pretrained(goldens.folder, dtype="auto").save_pretrained(folder)
        found = load_file(Path(folder) / "model.safetensors")
    wanted = load_file(goldens.golden / "tiny" / "model.safetensors")
    for name in sorted(found.keys() | wanted.keys()):
        here, there = found.get(name), wanted.get(name)
        same = here is not None and there is not None and here.dtype == there.dtype and torch.equal(here, there)
        yield name, not same


def worst(differences: Iterable[float]) -> float:
    """The largest of some differences; not a number if one of them is none."""
    return float(np.max(list(differences)))


def largest(difference: Tensor) -> float:
    """The largest absolute value."""
    return float(difference.detach().abs().max())
