"""The parts of the model: what may be trained, and where low-rank adapters (peft) go."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from train.model import adapter as saved_adapter
from train.model.modeling import Phi3VForCausalLM

if TYPE_CHECKING:
    from peft import PeftModel

PARTS = ("vision", "projection", "text", "embeddings", "head")
_TOWER = r"model\.vision_embed_tokens\.img_processor\.vision_model\.encoder\.layers\.\d+"
# Whole names: a pattern that finds too much or nothing is the usual way to train the wrong modules.
LORA_TARGETS = {
    "text_attention": re.compile(r"model\.layers\.\d+\.self_attn\.(qkv_proj|o_proj)"),
    "text_mlp": re.compile(r"model\.layers\.\d+\.mlp\.(gate_up_proj|down_proj)"),
    "projection": re.compile(r"model\.vision_embed_tokens\.img_projection\.(0|2)"),
    "vision": re.compile(rf"{_TOWER}\.(self_attn\.(q_proj|k_proj|v_proj|out_proj)|mlp\.(fc1|fc2))"),
}


def parts_of(name: str) -> str:
    """The part that a parameter belongs to, by its name; an adapter's belong to the module they change.

    vision: the CLIP tower; projection: projector and separators; text: decoder layers and final norm; embeddings;
    head.
    """
    name = name.removeprefix("base_model.model.")
    if name.startswith("model.vision_embed_tokens.img_processor."):
        return "vision"
    if name.startswith("model.vision_embed_tokens."):
        return "projection"
    if name.startswith("model.embed_tokens."):
        return "embeddings"
    if name.startswith("lm_head."):
        return "head"
    if name.startswith(("model.layers.", "model.norm.")):
        return "text"
    raise ValueError(f"parameter {name!r} is in no part of this model")


def set_trainable(model: Phi3VForCausalLM, parts: Sequence[str]) -> dict[str, int]:
    """Let gradients flow to these parts alone; returns the trainable parameters of every part.

    The tower's last layer and `post_layernorm` never get any: nothing that leaves the tower depends on them.
    Raises ValueError for a part there is not.
    """
    unknown = sorted(set(parts) - set(PARTS))
    if unknown:
        raise ValueError(f"parts: {', '.join(unknown)} unknown; allowed: {', '.join(PARTS)}")
    tower = model.model.vision_embed_tokens.img_processor.vision_model
    unused = {id(parameter) for parameter in tower.unused_parameters()}
    counts = dict.fromkeys(PARTS, 0)
    for name, parameter in model.named_parameters():
        part = parts_of(name)
        parameter.requires_grad_(part in parts and id(parameter) not in unused)
        if parameter.requires_grad:
            # ZeRO-3 keeps the size of a partitioned parameter beside it.
            counts[part] += getattr(parameter, "ds_numel", parameter.numel())
    return counts


def part_targets(model: Phi3VForCausalLM, parts: Sequence[str]) -> dict[str, list[str]]:
    """The exact names of the modules that adapters of each part go to.

    Arguments: the model without adapters; some of text_attention, text_mlp, projection and vision.
    Raises ValueError for a part there is not, or in which no module is found.
    """
    unknown = sorted(set(parts) - set(LORA_TARGETS))
    if unknown or not parts:
        found = ", ".join(unknown) or "none"
        raise ValueError(f"lora parts: found {found}; allowed: {', '.join(LORA_TARGETS)}")
    tower = model.model.vision_embed_tokens.img_processor.vision_model
    unused = {id(module) for module in tower.encoder.layers[-1].modules()}
    targets = {}
    for part in parts:
        names = [
            name
            for name, module in model.named_modules()
            if LORA_TARGETS[part].fullmatch(name) and id(module) not in unused
        ]
        if not names or not all(isinstance(model.get_submodule(name), nn.Linear) for name in names):
            raise ValueError(f"lora part {part}: found no linear layers in this model")
        targets[part] = names
    return targets


def add_lora(
    model: Phi3VForCausalLM,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    parts: Sequence[str] = ("text_attention", "text_mlp"),
    *,
    rslora: bool = False,
    dora: bool = False,
    adapter: str | Path | None = None,
) -> tuple["PeftModel", dict[str, int]]:
    """Freeze the model and put adapters on the linear layers of these parts.

    rslora: outputs are multiplied by alpha / √rank (arXiv 2312.03732) in place of alpha / rank.
    dora: a trained magnitude for each output beside the low-rank direction (arXiv 2402.09353).
    adapter: a folder that peft saved, whose values the adapters start with.
    Returns: the model with its adapters, of the model's own dtype; the number of adapted layers of each part.
    Raises ValueError as `part_targets` and `check_adapter` do.
    """
    from peft import LoraConfig, get_peft_model

    if adapter is not None:
        check_adapter(adapter, rank=rank, alpha=alpha, parts=parts, rslora=rslora, dora=dora)
    targets = part_targets(model, parts)
    names = [name for part in targets.values() for name in part]
    settings = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=names,
        use_rslora=rslora,
        use_dora=dora,
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(model, settings, autocast_adapter_dtype=False)
    model.disable_input_require_grads()  # which peft has asked for, as in set_checkpointing
    counts = adapted_layers(adapted)
    wanted = {part: len(found) for part, found in targets.items()}
    if counts != wanted:
        raise ValueError(f"lora: adapters were put on {counts} layers, wanted {wanted}")
    if adapter is not None:
        saved_adapter.install(adapted, Path(adapter))
    return adapted, counts


def check_adapter(
    folder: str | Path, *, rank: int, alpha: float, parts: Sequence[str], rslora: bool, dora: bool
) -> None:
    """Raise AdapterError unless a folder holds an adapter of these settings on these parts; needs no model."""
    wanted = {"rank": rank, "alpha": alpha, "rslora": rslora, "dora": dora}
    saved_adapter.check_settings(Path(folder), wanted, parts, lora_part)


def lora_part(module: str) -> str | None:
    """The part of LORA_TARGETS that a module is in, or None."""
    return next((part for part, pattern in LORA_TARGETS.items() if pattern.fullmatch(module)), None)


def merge_lora(adapted: "PeftModel") -> Phi3VForCausalLM:
    """The model itself with the adapters added to its weights; raises ValueError for adapters that are not finite."""
    merged: Any = adapted.merge_and_unload(safe_merge=True)
    assert isinstance(merged, Phi3VForCausalLM)
    return merged


def adapted_layers(adapted: "PeftModel") -> dict[str, int]:
    """How many layers of each part have adapters."""
    counts: dict[str, int] = {}
    for name, module in adapted.named_modules():
        if not hasattr(module, "lora_A"):
            continue
        name = name.removeprefix("base_model.model.")
        part = lora_part(name) or name
        counts[part] = counts.get(part, 0) + 1
    return counts
