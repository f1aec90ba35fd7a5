"""The weights of a trained model, one tensor at a time: the base's, what a checkpoint trained, adapters merged.

Files are read piece by piece and not mapped, so that no more than a few tensors are in memory at once.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from train.checkpoint import CheckpointError, Manifest, Written
from train.config_schema import Config
from train.model.adapter import PREFIX
from train.model.configuration import Phi3VConfig
from train.model.weights import INDEX, SINGLE, Place, compare, official_shapes, tensor_places

SHARD_BYTES = 5 * 10**9
_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_PIECE = 8 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class _Adapter:
    """The tensors of one adapted layer, by their names in the checkpoint."""

    down: str
    up: str
    magnitude: str | None


class TrainedTensors:
    """The parameters in a checkpoint, whoever wrote them, each as one tensor."""

    def __init__(self, checkpoint: Path) -> None:
        """Reads the headers of the checkpoint's files alone."""
        self.checkpoint = checkpoint
        self.manifest = Manifest.load(checkpoint)
        self._parts: dict[str, list[tuple[int, Place]]] = {}
        for key, place in tensor_places(checkpoint / name for name in self.manifest.files).items():
            kind, _, rest = key.partition(":")
            name, _, offset = rest.rpartition("@")
            if kind == "weight":
                self._parts.setdefault(name, []).append((int(offset), place))

    @property
    def shapes(self) -> Mapping[str, list[int]]:
        """Of every trained parameter."""
        return self.manifest.shapes

    def read(self, name: str) -> Tensor:
        """One parameter, float32; raises CheckpointError where parts are missing, and for NaN or infinity."""
        shape = self.shapes[name]
        whole = torch.empty(math.prod(shape), dtype=torch.float32)
        done = 0
        for offset, place in sorted(self._parts.get(name, []), key=lambda part: part[0]):
            whole[offset : offset + place.numel] = read_place(place).flatten()
            done += place.numel
        if done != whole.numel():
            raise CheckpointError(f"{self.checkpoint}: holds {done} of {whole.numel()} elements of {name}")
        check_finite(self.checkpoint, name, whole)
        return whole.reshape(shape)


class MergedWeights:
    """All tensors of a trained model under their official names."""

    def __init__(self, base: Path, checkpoint: Path, config: Config) -> None:
        """
        base: folder of the model that training started from. config: of the run.
        Raises ValueError where the base's tensors are not those of its configuration, CheckpointError where the
        checkpoint has trained something that is not in it.
        """
        self._config = config
        self._trained = TrainedTensors(checkpoint)
        files = [base / SINGLE]
        if (base / INDEX).is_file():
            index = json.loads((base / INDEX).read_text(encoding="utf-8"))
            files = [base / name for name in sorted(set(index["weight_map"].values()))]
        self._places = tensor_places(files)
        self.shapes = official_shapes(Phi3VConfig.from_pretrained(base))
        compare(str(base), {name: place.shape for name, place in self._places.items()}, self.shapes)
        self._adapters = _adapters(self._trained.shapes)
        whole = {name for name in self._trained.shapes if ".lora_" not in name}
        for name in whole | set(self._adapters):
            known = self.shapes.get(name)
            if known is None or (name in whole and tuple(self._trained.shapes[name]) != known):
                raise CheckpointError(f"{checkpoint}: {name} is not a parameter of {base} in its shape")

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        """One tensor in the dtype asked for; sums are made in float32."""
        if name in self._trained.shapes:
            return self._trained.read(name).to(dtype)
        tensor = read_place(self._places[name])
        if name in self._adapters:
            tensor = self._merge(tensor.float(), self._adapters[name])
        return tensor.to(dtype)

    def _merge(self, weight: Tensor, adapter: _Adapter) -> Tensor:
        """As peft merges: W + scale · B A, for DoRA each row brought to its trained length (arXiv 2402.09353)."""
        lora = self._config.tune.lora
        scale = lora.alpha / (math.sqrt(lora.rank) if lora.rslora else lora.rank)
        merged = weight.addmm_(self._trained.read(adapter.up), self._trained.read(adapter.down), alpha=scale)
        if adapter.magnitude is not None:
            lengths = self._trained.read(adapter.magnitude) / torch.linalg.norm(merged, dim=1)
            merged *= lengths[:, None]
        return merged


def _adapters(names: Iterable[str]) -> dict[str, _Adapter]:
    """The adapted weights, by their official names."""
    layers: dict[str, dict[str, str]] = {}
    for name in names:
        layer, found, rest = name.removeprefix(PREFIX).partition(".lora_")
        if found:
            layers.setdefault(f"{layer}.weight", {})[rest.partition(".")[0]] = name
    return {
        weight: _Adapter(down=parts["A"], up=parts["B"], magnitude=parts.get("magnitude_vector"))
        for weight, parts in layers.items()
    }


def read_place(place: Place) -> Tensor:
    """A tensor out of its file, in the file's dtype."""
    size = place.numel * place.dtype.itemsize
    content = bytearray(size)
    with place.file.open("rb", buffering=0) as file:
        file.seek(place.offset)
        view, done = memoryview(content), 0
        while done < size:
            count = file.readinto(view[done : done + _PIECE])
            if not count:
                raise CheckpointError(
                    f"{place.file}: ends early, after {done} of {size} bytes of a tensor; get it again"
                )
            done += count
        os.posix_fadvise(file.fileno(), place.offset, size, os.POSIX_FADV_DONTNEED)
    return torch.frombuffer(content, dtype=place.dtype).reshape(place.shape)


def check_finite(checkpoint: Path, name: str, tensor: Tensor) -> None:
    """Raise CheckpointError for a trained parameter that holds NaN or infinity."""
    bad = int((~torch.isfinite(tensor)).sum())
    if bad:
        raise CheckpointError(
            f"{checkpoint}: {bad} of {tensor.numel()} values of {name} are NaN or infinite: the training diverged; "
            "take an earlier checkpoint by --checkpoint, and train with a lower optim.lr"
        )


def write_weights(folder: Path, weights: MergedWeights, dtype: torch.dtype) -> dict[str, Written]:
    """Write all tensors as safetensors, in several files where they are more than SHARD_BYTES; what was written."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, shape in weights.shapes.items():
        size = math.prod(shape) * dtype.itemsize
        if shards[-1] and filled + size > SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    if len(shards) == 1:
        return {SINGLE: _write_shard(folder / SINGLE, weights, shards[0], dtype)}
    written: dict[str, Written] = {}
    places: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        written[file] = _write_shard(folder / file, weights, names, dtype)
        places |= dict.fromkeys(names, file)
    total = sum(math.prod(shape) for shape in weights.shapes.values()) * dtype.itemsize
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return written


def _write_shard(path: Path, weights: MergedWeights, names: Sequence[str], dtype: torch.dtype) -> Written:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        start, end = end, end + math.prod(weights.shapes[name]) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(weights.shapes[name]), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        for data in _pieces(text, weights, names, dtype):
            file.write(data)
            digest.update(data)
            size += len(data)
        file.flush()
        os.fsync(file.fileno())
    return Written(bytes=size, sha256=digest.hexdigest())


def _pieces(
    text: bytes, weights: MergedWeights, names: Sequence[str], dtype: torch.dtype
) -> Iterator[bytes | memoryview]:
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        tensor = weights.read(name, dtype).contiguous()
        view = tensor.flatten().view(torch.uint8).numpy().data
        for start in range(0, len(view), _PIECE):
            yield view[start : start + _PIECE]
