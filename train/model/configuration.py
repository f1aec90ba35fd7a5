"""The configuration of Phi-3-vision, read from and written as the published `config.json`."""

from copy import deepcopy
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import CLIPVisionConfig
from transformers.models.phi3.configuration_phi3 import Phi3Config

from train.model.clip import CLIP_VIT_LARGE

EMBD_LAYER = {
    "embedding_cls": "image",
    "hd_transform_order": "sub_glb",
    "projection_cls": "mlp",
    "use_hd_transform": True,
    "with_learnable_separator": True,
}
IMG_PROCESSOR = {
    "name": "clip_vision_model",
    "model_name": "openai/clip-vit-large-patch14-336",
    "image_dim_out": 1024,
    "num_img_tokens": 144,
}
CAME_WITH_A_FOLDER = not __name__.startswith("train.")


@strict
class Phi3VConfig(Phi3Config):
    """All fields of `Phi3Config` and the two that describe pictures.

    `rope_scaling` is taken in the published form {"type": "su", "short_factor", "long_factor"} and written back so.
    `img_processor["vision_config"]`, where present, holds `CLIPVisionConfig` fields in place of ViT-L/14-336.
    `auto_map` and the file's own attention setting are ignored: remote code is never followed, the caller chooses.
    Where this very file came with a folder, the Auto classes find the model beside it by `auto_map`.

    Raises ValueError for rope types, picture layers or sizes that the published model family does not have.
    """

    model_type = "phi3_v"

    embd_layer: dict[str, Any] | str | None = None
    img_processor: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.pop("_attn_implementation", None)
        if not CAME_WITH_A_FOLDER:
            kwargs.pop("auto_map", None)
        given: dict[str, Any] | None = self.rope_parameters  # type: ignore[has-type]
        scaling = kwargs.pop("rope_scaling", None) or given
        kwargs["rope_scaling"] = self._rope_parameters(scaling, kwargs.pop("rope_theta", None))
        self.rope_parameters = None
        self.embd_layer = deepcopy(self.embd_layer) if isinstance(self.embd_layer, dict) else dict(EMBD_LAYER)
        self.img_processor = deepcopy(self.img_processor) if self.img_processor else dict(IMG_PROCESSOR)
        super().__post_init__(**kwargs)
        self._check_pictures()
        self._check_text()

    def _rope_parameters(self, scaling: dict[str, Any] | None, rope_theta: float | None) -> dict[str, Any]:
        """`rope_scaling` of the file in the form of transformers 5."""
        scaling = dict(scaling or {})
        kind = scaling.pop("type", None) or scaling.pop("rope_type", None) or "default"
        theta = scaling.pop("rope_theta", None) or rope_theta or 10000.0
        for derived in ("rope_type", "partial_rotary_factor", "factor"):
            scaling.pop(derived, None)
        original = scaling.pop("original_max_position_embeddings", None)
        if kind == "default":
            return {"rope_type": "default", "rope_theta": theta}
        if kind not in ("su", "longrope"):
            raise ValueError(f"rope_scaling: type {kind!r} is not of this model family; allowed: 'su', or none at all")
        if set(scaling) != {"short_factor", "long_factor"}:
            raise ValueError(
                f"rope_scaling: found {sorted(scaling)} beside the type; needs exactly short_factor and long_factor"
            )
        pairs = self.hidden_size // self.num_attention_heads // 2
        for name in ("short_factor", "long_factor"):
            if not isinstance(scaling[name], list) or len(scaling[name]) != pairs:
                found = len(scaling[name]) if isinstance(scaling[name], list) else type(scaling[name]).__name__
                raise ValueError(f"rope_scaling: {name} must hold {pairs} numbers (head size / 2), found {found}")
        if original is not None:
            self.original_max_position_embeddings = original
        return {
            "rope_type": "longrope",
            "rope_theta": theta,
            "original_max_position_embeddings": self.original_max_position_embeddings,
            "factor": self.max_position_embeddings / self.original_max_position_embeddings,
            **scaling,
        }

    def _check_pictures(self) -> None:
        assert isinstance(self.embd_layer, dict)
        assert self.img_processor is not None
        wrong = {k: v for k, v in self.embd_layer.items() if k in EMBD_LAYER and v != EMBD_LAYER[k]}
        if wrong:
            raise ValueError(f"embd_layer: {wrong} is not what the published models have; needs {EMBD_LAYER}")
        vision = self.vision_config
        if self.img_processor.get("image_dim_out", vision.hidden_size) != vision.hidden_size:
            raise ValueError(
                f"img_processor: image_dim_out {self.img_processor['image_dim_out']} differs from the tower's "
                f"hidden_size {vision.hidden_size}"
            )
        if vision.image_size % (2 * vision.patch_size):
            raise ValueError(
                f"img_processor: crops of {vision.image_size} pixels do not hold an even number of "
                f"{vision.patch_size}-pixel patches a side, which the 2×2 merge needs"
            )
        if vision.num_hidden_layers < 2:
            raise ValueError("img_processor: the tower needs at least 2 layers, for its second last one is read")

    def _check_text(self) -> None:
        if self.hidden_size % self.num_attention_heads or self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size}, num_attention_heads {self.num_attention_heads} and "
                f"num_key_value_heads {self.num_key_value_heads} do not divide one another"
            )
        if self.sliding_window is not None and self.sliding_window < self.max_position_embeddings:
            raise ValueError(
                f"sliding_window {self.sliding_window} is shorter than max_position_embeddings "
                f"{self.max_position_embeddings}; attention windows are not implemented, for the published "
                "models never reach theirs"
            )
        if self.tie_word_embeddings:
            raise ValueError("tie_word_embeddings: this model family has an output head of its own; needs false")

    @property
    def vision_config(self) -> CLIPVisionConfig:
        """The configuration of the CLIP tower."""
        return CLIPVisionConfig(**{**CLIP_VIT_LARGE, **(self.img_processor or {}).get("vision_config", {})})

    @property
    def crop_size(self) -> int:
        """Pixels a side of a crop."""
        return int(self.vision_config.image_size)

    @property
    def tokens_per_side(self) -> int:
        """Image tokens a side of a crop, after the 2×2 merge."""
        vision = self.vision_config
        return int(vision.image_size // vision.patch_size // 2)

    @property
    def head_dim(self) -> int:
        """Width of one attention head of the decoder."""
        return int(self.hidden_size // self.num_attention_heads)

    def to_dict(self) -> dict[str, Any]:
        """The configuration as in the published file: `rope_scaling` of type su, `rope_theta` beside it."""
        output: dict[str, Any] = super().to_dict()
        rope = output.pop("rope_parameters", None) or {}
        output["rope_theta"] = rope.get("rope_theta", 10000.0)
        output["rope_scaling"] = None
        if rope.get("rope_type") == "longrope":
            output["rope_scaling"] = {
                "type": "su",
                "short_factor": rope["short_factor"],
                "long_factor": rope["long_factor"],
            }
        return output
