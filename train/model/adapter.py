"""A saved adapter in peft's form: checked against what is asked for, then put in place to train on."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

if TYPE_CHECKING:
    from peft import PeftModel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
# peft's settings that change which tensors an adapter has or what they mean, and that have no counterpart here.
FOREIGN = ("rank_pattern", "alpha_pattern", "modules_to_save", "layers_to_transform", "trainable_token_indices")


class AdapterError(ValueError):
    """An adapter that cannot be trained on as asked; names the folder, what was found and what to set."""


def saved_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a saved adapter's tensors; raises AdapterError for files that are absent or cut off."""
    file = folder / WEIGHTS
    for needed in (folder / CONFIG, file):
        if not needed.is_file():
            raise AdapterError(f"{needed}: not there; an adapter is a folder with {CONFIG} and {WEIGHTS}")
    try:
        with safe_open(str(file), framework="pt") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise AdapterError(f"{file}: cut off, or no safetensors file ({error}); get it again") from error


def adapted_modules(names: Iterable[str]) -> set[str]:
    """The modules that tensors of an adapter sit on, by the model's own names."""
    return {name.removeprefix(PREFIX).split(".lora_", 1)[0] for name in names}


def check_settings(folder: Path, wanted: Mapping[str, Any], parts: Sequence[str], part_of: Any) -> None:
    """Raise AdapterError unless a saved adapter is what the settings describe.

    wanted: rank, alpha, rslora and dora. parts: those that adapters shall go to.
    part_of: the part of a module by its name, None for one that is in none.
    """
    shapes = saved_shapes(folder)
    saved = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    if saved.get("peft_type") != "LORA":
        raise AdapterError(f"{folder}: an adapter of type {saved.get('peft_type')!r}; needs 'LORA'")
    foreign = [name for name in FOREIGN if saved.get(name)]
    if saved.get("bias", "none") != "none":
        foreign.append("bias")
    if foreign:
        raise AdapterError(f"{folder}: made with {', '.join(foreign)}, which cannot be gone on with here")
    found = {
        "rank": saved.get("r"),
        "alpha": saved.get("lora_alpha"),
        "rslora": bool(saved.get("use_rslora")),
        "dora": bool(saved.get("use_dora")),
    }
    modules = adapted_modules(shapes)
    lines = [f"{name} is {found[name]}, asked for {value}" for name, value in wanted.items() if found[name] != value]
    there = {part_of(module) for module in modules}
    if None in there:
        strange = sorted(module for module in modules if part_of(module) is None)
        lines.append(f"it sits on {', '.join(strange[:3])}, where no part has adapters")
    elif there != set(parts):
        lines.append(f"its parts are {', '.join(sorted(there))}, asked for {', '.join(parts)}")
    if lines:
        raise AdapterError(f"{folder}: {'; '.join(lines)}; set them as the adapter has them, or take another one")


def install(adapted: "PeftModel", folder: Path) -> None:
    """Give a model's adapters the values of a saved one; raises AdapterError unless names and shapes are the same."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    found = saved_shapes(folder)
    own = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    wanted = {name: tuple(tensor.shape) for name, tensor in own.items()}
    if found != wanted:
        lacks, more = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
        other = sorted(name for name in set(found) & set(wanted) if found[name] != wanted[name])
        raise AdapterError(
            f"{folder}: its tensors are not those of this model's adapters: {len(lacks)} missing {lacks[:3]}, "
            f"{len(more)} unexpected {more[:3]}, {len(other)} of another shape {other[:3]}; "
            "was it made for a model of this size?"
        )
    set_peft_model_state_dict(adapted, load_file(folder / WEIGHTS))
