"""Small models, their folders and inputs, for the tests of the model."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from data.geometry import image_tokens
from data.manifest import CHAT_TEMPLATES
from train.model.configuration import Phi3VConfig
from train.model.modeling import Phi3VForCausalLM
from train.model.tiny import PRESETS, Sizes, save_preprocessor, tiny_config
from train.model.tokens import STOPS, save_tokenizer, train_tokenizer

TEXTS = [
    "What is shown in this image?",
    "Product: Red cotton shirt, Category: SHIRTS, Full Price: 1950.0",
    "Product: Chemise à rayures, Category: SHIRTS, Full Price: 76.5",
    "Product: Юбка зелёная, Category: SKIRTS, Full Price: 230.0",
    "Be brief. Which colour? two  spaces",
]
SIZES = Sizes(
    hidden=64, layers=2, vision_hidden=32, vision_layers=3, crop_size=28, patch_size=7, num_crops=4, vocab=340
)


def small_tokenizer() -> dict[str, Any]:
    """The content of a small tokenizer.json."""
    return train_tokenizer(TEXTS, SIZES.vocab)


def small_config(original_length: int = 4096, **changes: Any) -> Phi3VConfig:
    """A configuration of two decoder layers, crops of 28 pixels, 2 × 2 image tokens a crop."""
    config = tiny_config(SIZES, SIZES.vocab, {"<|endoftext|>": SIZES.vocab})
    fields = {**config.to_dict(), "original_max_position_embeddings": original_length, **changes}
    return Phi3VConfig(**{key: value for key, value in fields.items() if key != "model_type"})


def small_model(seed: int = 0, spread: float = 0.2, **changes: Any) -> Phi3VForCausalLM:
    """A random float32 model whose weights are large enough for logits that differ."""
    torch.manual_seed(seed)
    model = Phi3VForCausalLM(small_config(**changes))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=spread)
    return model.eval()


def small_folder(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A whole model folder: weights, configuration, tokenizer, preprocessor."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = save_tokenizer(folder, small_tokenizer(), CHAT_TEMPLATES["phi3v"])
    model = small_model(seed, **changes)
    model.generation_config.eos_token_id = [ids[name] for name in STOPS]
    model.save_pretrained(folder)
    save_preprocessor(folder, SIZES)
    return folder


def noise(width: int, height: int, seed: int = 0, mode: str = "RGB") -> Image.Image:
    """A picture of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def sample(
    seed: int,
    words: int,
    grids: list[tuple[int, int]] | None = None,
    answer: int = 5,
    crop_size: int = SIZES.crop_size,
    side: int = 2,
) -> dict[str, torch.Tensor]:
    """One sample as tensors: input_ids [T], labels [T], crops uint8 [K, 3, c, c], image_sizes [N, 2].

    Some words, the pictures of these grids in order, and an answer of labelled tokens. A crop is `side` × `side` image
    tokens.
    """
    grids = grids or []
    generator = torch.Generator().manual_seed(seed)

    def random_words(count: int) -> list[int]:
        return torch.randint(259, SIZES.vocab, (count,), generator=generator).tolist()

    ids = [1, *random_words(words)]
    for number, (rows, columns) in enumerate(grids, start=1):
        ids += [-number] * image_tokens(rows, columns, side) + [1, *random_words(2)]
    end = random_words(answer)
    labels = [-100] * len(ids) + end
    shape = (sum(rows * columns for rows, columns in grids), 3, crop_size, crop_size)
    crops = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    sizes = torch.tensor(grids, dtype=torch.int64).reshape(-1, 2) * crop_size
    return {
        "input_ids": torch.tensor(ids + end),
        "labels": torch.tensor(labels),
        "crops": crops,
        "image_sizes": sizes,
    }


def pack(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """The model's arguments for a pack of samples."""
    lengths = [len(one["input_ids"]) for one in samples]
    arguments: dict[str, Any] = {
        "input_ids": torch.cat([one["input_ids"] for one in samples])[None],
        "labels": torch.cat([one["labels"] for one in samples])[None],
        "cu_seqlens": torch.tensor([0, *np.cumsum(lengths).tolist()], dtype=torch.int32),
    }
    return arguments | _pictures(samples)


def padded(samples: list[dict[str, Any]], side: str) -> dict[str, Any]:
    """The model's arguments for a batch of samples, padded on one side."""
    longest = max(len(one["input_ids"]) for one in samples)
    ids = torch.full((len(samples), longest), SIZES.vocab)
    labels = torch.full_like(ids, -100)
    mask = torch.zeros_like(ids)
    for row, one in enumerate(samples):
        count = len(one["input_ids"])
        place = slice(0, count) if side == "right" else slice(longest - count, None)
        ids[row, place], labels[row, place], mask[row, place] = one["input_ids"], one["labels"], 1
    return {"input_ids": ids, "labels": labels, "attention_mask": mask} | _pictures(samples)


def _pictures(samples: list[dict[str, Any]]) -> dict[str, Any]:
    crops = torch.cat([one["crops"] for one in samples])
    if not len(crops):
        return {}
    return {"pixel_values": crops, "image_sizes": torch.cat([one["image_sizes"] for one in samples])}


__all__ = ["PRESETS", "SIZES", "noise", "pack", "padded", "sample", "small_config", "small_folder", "small_model"]
