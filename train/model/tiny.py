"""A small random Phi-3-vision with a tokenizer of its own: `python -m train.model.tiny OUT --shards SHARDS`.

The same classes, files and special tokens as the published model; sizes that two CPU cores can train in minutes.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch

from data.manifest import Manifest
from data.schema import IMAGE_TAG, UserError
from data.shards import iter_samples
from train.model.configuration import Phi3VConfig
from train.model.image_embedding import IMAGE_MEAN, IMAGE_STD
from train.model.modeling import Phi3VForCausalLM
from train.model.tokens import STOPS, save_tokenizer, train_tokenizer

HEAD_DIM = 32
# Published: 32,000 pieces, 45 added tokens, 32,064 rows.
ROWS_BEHIND_PIECES = 64


class TinyError(UserError):
    """Sizes that do not fit together, or a folder that cannot be written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The sizes of a small model."""

    hidden: int
    """decoder width, a multiple of 32"""
    layers: int
    """decoder layers"""
    vision_hidden: int
    """tower width, a multiple of 32"""
    vision_layers: int
    """tower layers, of which the last is never run"""
    crop_size: int
    """pixels a side of a crop, an even number of patches"""
    patch_size: int
    """pixels a side of a patch"""
    num_crops: int
    """largest number of crops of a picture"""
    vocab: int
    """largest number of the tokenizer's pieces"""


PRESETS = {
    "quickstart": Sizes(
        hidden=128,
        layers=4,
        vision_hidden=96,
        vision_layers=4,
        crop_size=112,
        patch_size=14,
        num_crops=1,
        vocab=1500,
    )
}


def tiny_config(sizes: Sizes, pieces: int, ids: dict[str, int]) -> Phi3VConfig:
    """The configuration of these sizes; `ids`: those of the tokenizer's added tokens.

    Raises TinyError for sizes that do not fit together.
    """
    for name in ("hidden", "vision_hidden"):
        if getattr(sizes, name) % HEAD_DIM or getattr(sizes, name) < HEAD_DIM:
            raise TinyError(f"{name} {getattr(sizes, name)}: needs a multiple of {HEAD_DIM}, the width of a head")
    pairs = HEAD_DIM // 2
    vision = {
        "hidden_size": sizes.vision_hidden,
        "intermediate_size": 4 * sizes.vision_hidden,
        "num_hidden_layers": sizes.vision_layers,
        "num_attention_heads": sizes.vision_hidden // HEAD_DIM,
        "image_size": sizes.crop_size,
        "patch_size": sizes.patch_size,
        "projection_dim": sizes.vision_hidden,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    }
    try:
        return Phi3VConfig(
            vocab_size=pieces + ROWS_BEHIND_PIECES,
            hidden_size=sizes.hidden,
            intermediate_size=-(-sizes.hidden * 8 // 3 // HEAD_DIM) * HEAD_DIM,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.hidden // HEAD_DIM,
            max_position_embeddings=131072,
            original_max_position_embeddings=4096,
            rope_scaling={
                "type": "su",
                "short_factor": [1.0 + 0.05 * pair for pair in range(pairs)],
                "long_factor": [round(64.0 ** (pair / (pairs - 1)), 4) for pair in range(pairs)],
            },
            sliding_window=131072,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=ids["<|endoftext|>"],
            # Keeps a layer's outputs as large as its inputs: 0.02 at the published width, but 0.09 at 128.
            initializer_range=round(sizes.hidden**-0.5, 4),
            img_processor={
                "name": "clip_vision_model",
                "image_dim_out": sizes.vision_hidden,
                "num_img_tokens": (sizes.crop_size // sizes.patch_size // 2) ** 2,
                "vision_config": vision,
            },
        )
    except ValueError as error:
        raise TinyError(f"these sizes make no model: {error}") from error


def make(out: Path, shards: Path, sizes: Sizes, seed: int, split: str = "train") -> None:
    """Write a model folder; the same bytes for the same shards, sizes and seed.

    Raises TinyError, and the shard reader's errors for shards that cannot be read.
    """
    if out.exists() and any(out.iterdir()):
        raise TinyError(f"{out}: already holds files; delete it, or give another folder")
    manifest = Manifest.load(shards)
    texts = [
        IMAGE_TAG.sub("", message["content"])
        for sample, _ in iter_samples(shards, split)
        for message in sample.messages
    ]
    try:
        tokenizer = train_tokenizer(texts, sizes.vocab)
    except ValueError as error:
        raise TinyError(f"vocab: {error}") from error
    out.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        ids = save_tokenizer(building, tokenizer, manifest.chat_template["template"])
        _save_model(building, tiny_config(sizes, len(tokenizer["model"]["vocab"]), ids), ids, seed)
        save_preprocessor(building, sizes)
        # mkdtemp and safetensors keep others out; a model folder is for all who may read its place.
        building.chmod(0o755)
        (building / "model.safetensors").chmod(0o644)
        building.replace(out)
    except BaseException:
        shutil.rmtree(building)
        raise


def _save_model(folder: Path, config: Phi3VConfig, ids: dict[str, int], seed: int) -> None:
    generator = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = Phi3VForCausalLM(config)
    torch.random.set_rng_state(generator)
    model.generation_config.eos_token_id = [ids[name] for name in STOPS]
    model.generation_config.pad_token_id = ids["<|endoftext|>"]
    model.save_pretrained(folder)


def save_preprocessor(folder: Path, sizes: Sizes) -> None:
    """Write preprocessor_config.json with the sizes' crops."""
    side = sizes.crop_size // sizes.patch_size // 2
    settings = {
        "num_crops": sizes.num_crops,
        "image_mean": IMAGE_MEAN,
        "image_std": IMAGE_STD,
        "image_processor_type": "Phi3VImageProcessor",
        "processor_class": "Phi3VProcessor",
        "num_img_tokens": side**2,
        "crop_size": sizes.crop_size,
        "tokens_per_side": side,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m train.model.tiny", description=__doc__)
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--shards", type=Path, required=True, help="folder of shards whose text the tokenizer learns")
    parser.add_argument("--split", default="train", help="split to learn from (default: train)")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="quickstart")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights (default: 0)")
    for field in fields(Sizes):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=int, help="in place of the preset's")
    given = vars(parser.parse_args(arguments))
    changes = {field.name: given[field.name] for field in fields(Sizes) if given[field.name] is not None}
    try:
        make(given["out"], given["shards"], replace(PRESETS[given["preset"]], **changes), given["seed"], given["split"])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{given['out']}: a random model and its tokenizer")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
