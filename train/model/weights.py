"""Checkpoints in the published layout: every tensor there is, and no other, or an error with the names.

The modules bear the published names, so nothing is renamed in either direction.
"""

import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from train.model.configuration import Phi3VConfig

IGNORED = ("model.vision_embed_tokens.wte.weight",)
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class CheckpointError(ValueError):
    """A checkpoint that is not one of this model; names the folder and the tensors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a tensor's bytes lie."""

    file: Path
    offset: int
    """First byte in the file."""
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Elements of the whole tensor."""
        return math.prod(self.shape)


def checkpoint_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of a folder, read from the files' headers.

    Raises CheckpointError for files that are absent, cut off, or no safetensors.
    """
    files = [folder / SINGLE]
    if (folder / INDEX).is_file():
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        files = [folder / name for name in sorted(set(index["weight_map"].values()))]
    return {name: place.shape for name, place in tensor_places(files).items()}


def tensor_places(files: Iterable[Path]) -> dict[str, Place]:
    """All tensors of some safetensors files, by name, read from the files' headers.

    Raises CheckpointError for files that are absent, cut off, or no safetensors, and for dtypes that are no weights'.
    """
    places: dict[str, Place] = {}
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{file}: not there; the folder needs {SINGLE}, or {INDEX} and the files it names")
        try:
            with safe_open(str(file), framework="pt"):
                pass
        except SafetensorError as error:
            raise CheckpointError(f"{file}: cut off, or no safetensors file ({error}); get it again") from error
        # The format: eight bytes with the header's length, the header in JSON, then the tensors.
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            if entry["dtype"] not in DTYPES:
                raise CheckpointError(f"{file}: {name} is {entry['dtype']}; needs one of {', '.join(DTYPES)}")
            places[name] = Place(
                file=file,
                offset=8 + length + entry["data_offsets"][0],
                dtype=DTYPES[entry["dtype"]],
                shape=tuple(entry["shape"]),
            )
    return places


def official_shapes(config: Phi3VConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes that a checkpoint of this configuration must have."""
    from train.model.modeling import Phi3VForCausalLM

    with torch.device("meta"):
        model = Phi3VForCausalLM(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def compare(where: str, found: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]) -> None:
    """Raise CheckpointError unless names and shapes are equal, tied duplicates left out."""
    missing = sorted(set(wanted) - set(found))
    unexpected = sorted(set(found) - set(wanted) - set(IGNORED))
    misshapen = [
        f"{name} {list(found[name])} (needs {list(wanted[name])})"
        for name in sorted(set(found) & set(wanted))
        if found[name] != wanted[name]
    ]
    _complain(where, missing, unexpected, misshapen)


def _complain(where: str, missing: Iterable[str], unexpected: Iterable[str], misshapen: Iterable[str]) -> None:
    parts = []
    for title, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen)):
        names = list(names)
        if names:
            shown = ", ".join(names[:20]) + (f", and {len(names) - 20} more" if len(names) > 20 else "")
            parts.append(f"{len(names)} {title}: {shown}")
    if parts:
        raise CheckpointError(f"{where}: the tensors are not those of its config.json; " + "; ".join(parts))


def check_folder(folder: str | os.PathLike[str], options: dict[str, Any]) -> None:
    """Look through a local folder before anything is loaded; what a hub name stands for is left to the loader.

    Raises CheckpointError (see `compare`), also for a config.json of another family.
    """
    if not Path(folder).is_dir():
        return
    path = Path(folder) / options.get("subfolder", "")
    config = options.get("config")
    if not isinstance(config, Phi3VConfig):
        check_family(path)
        config = Phi3VConfig.from_pretrained(path)
    compare(str(path), checkpoint_shapes(path), official_shapes(config))


def check_family(folder: Path) -> None:
    """Raise CheckpointError unless the folder's config.json is there and says `phi3_v`."""
    file = folder / "config.json"
    if not file.is_file():
        raise CheckpointError(f"{file}: not there; needs a folder in the published layout")
    family = json.loads(file.read_text(encoding="utf-8")).get("model_type")
    if family != Phi3VConfig.model_type:
        raise CheckpointError(f"{file}: model_type {family!r} is another family; needs {Phi3VConfig.model_type!r}")


def check_loading(where: str | os.PathLike[str], info: dict[str, Any]) -> None:
    """Raise CheckpointError for what the loader found missing, unexpected or misshapen."""
    misshapen = [f"{name} {list(found)} (needs {list(needs)})" for name, found, needs in info["mismatched_keys"]]
    _complain(str(where), sorted(info["missing_keys"]), sorted(info["unexpected_keys"]), misshapen)
