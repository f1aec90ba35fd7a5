"""The model's tensors as numbers: every name of the published layout, its part, its shape, from `config.json`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from train.config_schema import LoraSection
from train.model.clip import CLIP_VIT_LARGE

TOWER = "model.vision_embed_tokens.img_processor.vision_model"
PROJECTION = "model.vision_embed_tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One parameter."""

    name: str
    part: str
    """vision, projection, text, embeddings or head."""
    shape: tuple[int, ...]
    used: bool = True
    """Whether the output depends on it: the tower's last layer is stored and never run."""
    lora_part: str | None = None
    """The part of `tune.lora.parts` whose adapters sit on it; adapters themselves have none."""
    adapter: bool = False
    numel: int = field(init=False)
    """Elements."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "numel", math.prod(self.shape))

    @property
    def is_matrix(self) -> bool:
        """Whether it is decayed, and so in which of the optimizer's groups it is."""
        return sum(size > 1 for size in self.shape) >= 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSizes:
    """What a model folder's config.json says of sizes."""

    hidden: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    width: int
    """Of the vision tower."""
    tower_mlp: int
    tower_layers: int
    """The last of them is never run."""
    tower_heads: int
    patch: int
    crop_size: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "ModelSizes":
        """From the content of a config.json in the published form."""
        vision = CLIP_VIT_LARGE | ((config.get("img_processor") or {}).get("vision_config") or {})
        return cls(
            hidden=config["hidden_size"],
            mlp=config["intermediate_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            kv_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
            vocabulary=config["vocab_size"],
            width=vision["hidden_size"],
            tower_mlp=vision["intermediate_size"],
            tower_layers=vision["num_hidden_layers"],
            tower_heads=vision["num_attention_heads"],
            patch=vision["patch_size"],
            crop_size=vision["image_size"],
        )

    @property
    def head_dim(self) -> int:
        """Width of a head of the decoder."""
        return self.hidden // self.heads

    @property
    def qkv(self) -> int:
        """Width of queries, keys and values together."""
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    @property
    def side(self) -> int:
        """Image tokens a side of a crop."""
        return self.crop_size // self.patch // 2

    @property
    def crop_tokens(self) -> int:
        """Positions of the tower a crop: patches and the class token."""
        return (self.crop_size // self.patch) ** 2 + 1

    def image_tokens(self, rows: int, columns: int) -> int:
        """Tokens of the decoder that a picture of rows × columns crops becomes."""
        return self.side * rows * (self.side * columns + 1) + 1 + self.side * (self.side + 1)


PUBLISHED = ModelSizes(
    hidden=3072,
    mlp=8192,
    layers=32,
    heads=32,
    kv_heads=32,
    vocabulary=32064,
    width=1024,
    tower_mlp=4096,
    tower_layers=24,
    tower_heads=16,
    patch=14,
    crop_size=336,
)
"""Phi-3-vision-128k-instruct and Phi-3.5-vision-instruct."""


@cache
def decoder_layer(sizes: ModelSizes, layer: int) -> tuple[Tensor, ...]:
    """Of one decoder layer, in the order in which they are used."""
    prefix, hidden, mlp = f"model.layers.{layer}", sizes.hidden, sizes.mlp
    found = []
    for name, shape, lora in (
        ("input_layernorm", (hidden,), None),
        ("self_attn.qkv_proj", (sizes.qkv, hidden), "text_attention"),
        ("self_attn.o_proj", (hidden, sizes.heads * sizes.head_dim), "text_attention"),
        ("post_attention_layernorm", (hidden,), None),
        ("mlp.gate_up_proj", (2 * mlp, hidden), "text_mlp"),
        ("mlp.down_proj", (hidden, mlp), "text_mlp"),
    ):
        found.append(Tensor(name=f"{prefix}.{name}.weight", part="text", shape=shape, lora_part=lora))
    return tuple(found)


def with_bias(name: str, part: str, shape: tuple[int, ...], used: bool = True, lora: str | None = None) -> list[Tensor]:
    """A weight and its bias."""
    return [
        Tensor(name=f"{name}.weight", part=part, shape=shape, used=used, lora_part=lora),
        Tensor(name=f"{name}.bias", part=part, shape=shape[:1], used=used),
    ]


@cache
def tower_layer(sizes: ModelSizes, layer: int) -> tuple[Tensor, ...]:
    """Of one layer of the vision tower, in the order in which they are used."""
    prefix, width, mlp = f"{TOWER}.encoder.layers.{layer}", sizes.width, sizes.tower_mlp
    used = layer < sizes.tower_layers - 1
    found = with_bias(f"{prefix}.layer_norm1", "vision", (width,), used)
    lora = "vision" if used else None
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        found += with_bias(f"{prefix}.self_attn.{name}", "vision", (width, width), used, lora)
    found += with_bias(f"{prefix}.layer_norm2", "vision", (width,), used)
    found += with_bias(f"{prefix}.mlp.fc1", "vision", (mlp, width), used, lora)
    return (*found, *with_bias(f"{prefix}.mlp.fc2", "vision", (width, mlp), used, lora))


def tower_start(sizes: ModelSizes) -> list[Tensor]:
    """Of the vision tower before its first layer."""
    width = sizes.width
    return [
        Tensor(name=f"{TOWER}.embeddings.class_embedding", part="vision", shape=(width,)),
        Tensor(
            name=f"{TOWER}.embeddings.patch_embedding.weight", part="vision", shape=(width, 3, sizes.patch, sizes.patch)
        ),
        Tensor(name=f"{TOWER}.embeddings.position_embedding.weight", part="vision", shape=(sizes.crop_tokens, width)),
        *with_bias(f"{TOWER}.pre_layrnorm", "vision", (width,)),
    ]


def projection(sizes: ModelSizes) -> list[Tensor]:
    """Of the projector and the separators."""
    merged, name = 4 * sizes.width, f"{PROJECTION}.img_projection"
    return [
        Tensor(name=f"{PROJECTION}.glb_GN", part="projection", shape=(1, 1, merged)),
        Tensor(name=f"{PROJECTION}.sub_GN", part="projection", shape=(1, 1, 1, merged)),
        *with_bias(f"{name}.0", "projection", (sizes.hidden, merged), lora="projection"),
        *with_bias(f"{name}.2", "projection", (sizes.hidden, sizes.hidden), lora="projection"),
    ]


def tensors(sizes: ModelSizes) -> list[Tensor]:
    """All of the model, in the order in which a forward pass uses them; what it never uses stands at its place."""
    found = [Tensor(name="model.embed_tokens.weight", part="embeddings", shape=(sizes.vocabulary, sizes.hidden))]
    found += tower_start(sizes)
    for layer in range(sizes.tower_layers):
        found += tower_layer(sizes, layer)
    found += with_bias(f"{TOWER}.post_layernorm", "vision", (sizes.width,), used=False)
    found += projection(sizes)
    for layer in range(sizes.layers):
        found += decoder_layer(sizes, layer)
    found.append(Tensor(name="model.norm.weight", part="text", shape=(sizes.hidden,)))
    found.append(Tensor(name="lm_head.weight", part="head", shape=(sizes.vocabulary, sizes.hidden)))
    return found


def adapters(weight: Tensor, lora: LoraSection) -> list[Tensor]:
    """What LoRA puts beside a weight [outputs, inputs]; nothing where its part is not named."""
    if weight.lora_part not in lora.parts:
        return []
    outputs, inputs = weight.shape
    shapes = {"lora_A": (lora.rank, inputs), "lora_B": (outputs, lora.rank)}
    if lora.dora:
        shapes["lora_magnitude_vector"] = (outputs,)  # type: ignore[assignment]
    return [
        Tensor(name=weight.name.replace(".weight", f".{kind}.weight"), part=weight.part, shape=shape, adapter=True)
        for kind, shape in shapes.items()
    ]


def numel(of: Sequence[Tensor]) -> int:
    """Elements together."""
    return sum(tensor.numel for tensor in of)
