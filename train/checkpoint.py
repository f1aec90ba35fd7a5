"""Checkpoints: slices of the trained parameters and their Adam moments, readable by any number of ranks.

    runs/<name>/checkpoints/step-000100/
        manifest.json               written last: step, configuration, plan, shapes, each file's size and hash
        rank-00000.safetensors …    what one rank held: `weight:NAME@OFFSET`, `exp_avg:…`, `exp_avg_sq:…`, flat fp32

OFFSET counts elements from the start of the flattened parameter. A folder is whole (its files have the manifest's sizes
and hashes, and the manifest its own) or it is not used. Neither DeepSpeed nor pickle is needed to read one.

    python -m train.checkpoint list|verify|prune RUN
"""

import sys
from pathlib import Path

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from data.manifest import file_sha256
from data.schema import UserError
from data.whole import sync

if TYPE_CHECKING:
    import torch

FORMAT = 3
READS = (1, 2, 3)
"""Format 1 has neither a hash of the manifest nor a probe, 2 neither loss scale nor stopping."""
KINDS = ("weight", "exp_avg", "exp_avg_sq")
CHUNK_BYTES = 8 * 2**20


class CheckpointError(UserError):
    """A checkpoint is not whole, or not of this run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """A contiguous part of one parameter, as a rank holds it."""

    name: str
    offset: int
    """First element, counted in the flattened parameter."""
    tensors: Mapping[str, "torch.Tensor"]
    """weight, exp_avg, exp_avg_sq; each flat, fp32, of the same length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A file as it must be found again."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a checkpoint says of itself."""

    step: int
    """Optimizer steps done."""
    adam_step: int
    """Updates Adam has made: `step` less the steps that were skipped."""
    world_size: int
    """Ranks that wrote it."""
    plan: str
    """Fingerprint of the order of training."""
    config: dict[str, Any]
    """The run's whole configuration."""
    base: dict[str, str]
    """path and fingerprint of the model that training started from."""
    shapes: dict[str, list[int]]
    """Of every trained parameter."""
    files: dict[str, Written]
    validation_loss: float | None
    """Of the weights saved here, where it was measured."""
    versions: dict[str, str]
    probe: dict[str, Any] | None = None
    """`loss` of the batch of train/probe.py with these weights, and `under` what it was computed."""
    loss_scale: dict[str, float] | None = None
    """Of fp16, where it is not fixed: see precision.LossScale."""
    stopping: dict[str, float | None] | None = None
    """What has been counted towards the run's end: see stopping.Stopping."""
    format: int = FORMAT

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Read a checkpoint's manifest; raises CheckpointError where there is none or it is of another format."""
        path = Path(folder) / "manifest.json"
        try:
            text = path.read_text()
            values = json.loads(text)
        except FileNotFoundError as error:
            raise CheckpointError(
                f"{folder}: no manifest.json, so this checkpoint was never finished; take another one"
            ) from error
        except ValueError as error:
            raise CheckpointError(f"{path}: not JSON; take another checkpoint") from error
        if not isinstance(values, dict) or values.get("format") not in READS:
            found = values.get("format") if isinstance(values, dict) else None
            raise CheckpointError(
                f"{path}: checkpoint format {found!r}, this version reads {READS[0]} to {READS[-1]}; "
                "use the version that wrote it"
            )
        values.pop("sha256", None)
        if values["format"] > 1 and sealed(values) != text:
            raise CheckpointError(f"{path}: its SHA-256 is not the one it ends with; take another checkpoint")
        files = {name: Written(**written) for name, written in values["files"].items()}
        return cls(**(values | {"files": files}))


def step_folder(step: int) -> str:
    """The folder name of a step's checkpoint."""
    return f"step-{step:06d}"


def sealed(values: Mapping[str, Any]) -> str:
    """The text of a manifest: its values and, last, their hash, so that no byte of it can change unseen."""
    digest = hashlib.sha256(json.dumps(values).encode()).hexdigest()
    return json.dumps({**values, "sha256": digest}, indent=1) + "\n"


def write_slices(
    folder: Path, rank: int, slices: Sequence[Slice], alive: Callable[[], None] = lambda: None
) -> tuple[str, Written]:
    """Write one rank's slices into an unfinished checkpoint, as safetensors, hashed on their way.

    By hand, for the library first makes a copy of all that it writes.
    alive: called after each piece, for those who watch whether the disk still answers.
    Returns the file's name, size and hash.
    """
    tensors = {f"{kind}:{part.name}@{part.offset}": part.tensors[kind] for part in slices for kind in KINDS}
    header, end = {}, 0
    for key, tensor in tensors.items():
        start, end = end, end + 4 * tensor.numel()
        header[key] = {"dtype": "F32", "shape": [tensor.numel()], "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path = folder / f"rank-{rank:05d}.safetensors"
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as file:

        def put(data: bytes | memoryview) -> None:
            nonlocal size
            file.write(data)
            digest.update(data)
            size += len(data)
            alive()

        put(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            view = tensor.detach().float().cpu().contiguous().numpy().data.cast("B")
            for start in range(0, len(view), CHUNK_BYTES):
                put(view[start : start + CHUNK_BYTES])
        file.flush()
        os.fsync(file.fileno())
    return path.name, Written(bytes=size, sha256=digest.hexdigest())


def finish(aside: Path, manifest: Manifest) -> Path:
    """Add the manifest to an unfinished checkpoint and give it its name; from then on it counts."""
    path = aside / "manifest.json"
    path.write_text(sealed(asdict(manifest)))
    sync(path)
    sync(aside)
    final = aside.with_name(step_folder(manifest.step))
    if final.exists():
        # Only a damaged one can be there: a whole one of this step would have been resumed from.
        shutil.rmtree(final)
    aside.rename(final)
    sync(final.parent)
    return final


def problem(folder: Path) -> str | None:
    """Why a checkpoint is not whole, or None where it is: every file is read and hashed."""
    try:
        manifest = Manifest.load(folder)
    except CheckpointError as error:
        return str(error)
    # Hashing leaves the interpreter to others: as many files at once as there are cores.
    with ThreadPoolExecutor(max_workers=min(8, len(os.sched_getaffinity(0)))) as pool:
        reasons = pool.map(lambda item: file_problem(folder / item[0], item[1]), manifest.files.items())
        return next((reason for reason in reasons if reason), None)


def file_problem(path: Path, written: Written, hashed: bool = True) -> str | None:
    """Why a file is not what was written, or None; `hashed`: by its bytes and not only by its size."""
    if not path.is_file():
        return f"{path}: missing"
    if path.stat().st_size != written.bytes:
        return f"{path}: {path.stat().st_size} bytes, {written.bytes} in the manifest"
    if hashed and file_sha256(path) != written.sha256:
        return f"{path}: its SHA-256 is not the manifest's"
    return None


class Reader:
    """Ranges of the parameters in a checkpoint, whoever wrote them."""

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        self.folder = Path(folder)
        self.manifest = Manifest.load(self.folder)
        self.parts: dict[str, list[tuple[int, str, str]]] = {}
        self.files = {name: safe_open(self.folder / name, framework="pt") for name in self.manifest.files}
        for file, opened in self.files.items():
            for key in opened.keys():  # noqa: SIM118 (not a dictionary)
                named, _, offset = key.rpartition("@")
                self.parts.setdefault(named, []).append((int(offset), file, key))
        for parts in self.parts.values():
            parts.sort()

    def read(self, kind: str, name: str, start: int, length: int) -> "torch.Tensor":
        """Elements start … start + length of a parameter, flat fp32 [length].

        kind: weight | exp_avg | exp_avg_sq.
        Raises CheckpointError where the checkpoint does not hold all of them.
        """
        import torch

        result = torch.empty(length, dtype=torch.float32)
        done = 0
        for offset, file, key in self.parts.get(f"{kind}:{name}", []):
            view = self.files[file].get_slice(key)
            size = view.get_shape()[0]
            low, high = max(start, offset), min(start + length, offset + size)
            if low < high:
                result[low - start : high - start] = view[low - offset : high - offset]
                done += high - low
        if done != length:
            raise CheckpointError(
                f"{self.folder}: holds {done} of {length} elements of {kind} of {name} from {start} on"
            )
        return result


def full_tensors(folder: Path) -> Iterator[tuple[str, "torch.Tensor"]]:
    """Every trained parameter of a checkpoint as (name, fp32 tensor of its shape), one at a time."""
    reader = Reader(folder)
    for name, shape in reader.manifest.shapes.items():
        size = 1
        for side in shape:
            size *= side
        yield name, reader.read("weight", name, 0, size).reshape(shape)


def fingerprint_model(folder: Path) -> str:
    """A fingerprint of a model folder: names and sizes of its files, config.json, and 64 blocks of each weights file.

    Fast for any size; another model, another version or a cut file changes it.
    """
    digest = hashlib.sha256()
    for path in sorted(path for path in Path(folder).iterdir() if path.suffix in (".json", ".safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        block = 65536
        with path.open("rb") as file:
            for place in range(0, size, max(block, size // 64)):
                file.seek(place)
                digest.update(file.read(block))
    return digest.hexdigest()


if __name__ == "__main__":
    from train.keeping import main

    sys.exit(main())
