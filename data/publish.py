"""Finished shards to an output that is far away: each file whole, the index behind the shards, the manifest last."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.manifest import Manifest, file_sha256
from data.places import file_system, join, reaching
from data.whole import whole_file

_NOTE = "uploaded.jsonl"


@dataclass(frozen=True, slots=True)
class _File:
    """A file of the output."""

    name: str
    """Relative to the output."""
    bytes: int
    sha256: str


def publish(work: Path, output: str, report: Callable[[int], None]) -> int:
    """Bring a far output folder up to date with a finished build in `work`.

    What is there already, by the notes of earlier uploads and by its size there, is not sent again, so that a killed
    upload goes on. While anything differs there is no manifest there. Shards of an earlier build are removed.
    Arguments: the work folder; a URL; told how many more bytes are there.
    Returns: how many files were sent. Raises PlaceError.
    """
    manifest = Manifest.load(work)
    system, folder = file_system(output)
    notes = _Notes(work / "downloads" / _NOTE, output)
    wanted = list(_files(work, manifest))
    there = _listed(system, folder, output)
    sent = 0
    stale = sorted(name for name in there if _is_ours(name) and name not in {file.name for file in wanted})
    missing = [file for file in wanted if there.get(file.name) != file.bytes or not notes.has(file)]
    if missing and "manifest.json" in there and missing[0].name != "manifest.json":
        with reaching(output):
            system.rm_file(join(folder, "manifest.json"))
        missing = [*(file for file in missing if file.name != "manifest.json"), wanted[-1]]
    made: set[str] = set()
    for file in wanted:
        if file in missing:
            if file.name == "manifest.json":
                _remove(system, folder, output, stale)
            inside = join(folder, file.name).rpartition("/")[0]
            with reaching(join(output, file.name)):
                if inside not in made:
                    system.makedirs(inside, exist_ok=True)
                    made.add(inside)
                system.put_file(str(work / file.name), join(folder, file.name))
            notes.add(file)
            sent += 1
        report(file.bytes)
    return sent


def upload_bytes(work: Path) -> int:
    """How many bytes a finished build's output has."""
    return sum(file.bytes for file in _files(work, Manifest.load(work)))


def _files(work: Path, manifest: Manifest) -> Iterator[_File]:
    """The files of a build in the order in which they are sent."""
    for split, shards in manifest.shards.items():
        yield from (_File(f"{split}/{shard['name']}", shard["bytes"], shard["sha256"]) for shard in shards)
    indexes = [f"{split}/index.arrow" for split in manifest.shards]
    for name in (*indexes, "rejected.jsonl", "manifest.json"):
        yield _File(name, (work / name).stat().st_size, file_sha256(work / name))


def _is_ours(name: str) -> bool:
    file = name.rpartition("/")[2]
    return name.count("/") == 1 and (file == "index.arrow" or (file.startswith("shard-") and file.endswith(".tar")))


def _listed(system: Any, folder: str, output: str) -> dict[str, int]:
    """The files that are there, by their names relative to the folder, with their sizes."""
    try:
        with reaching(output):
            system.invalidate_cache()
            found = system.find(folder, detail=True)
    except FileNotFoundError:
        return {}
    start = len(folder.rstrip("/")) + 1
    return {name[start:]: int(about["size"]) for name, about in found.items()}


def _remove(system: Any, folder: str, output: str, names: list[str]) -> None:
    for name in names:
        with reaching(join(output, name)):
            system.rm_file(join(folder, name))


class _Notes:
    """What was sent to which output; a line behind each upload, so that a kill costs the file at hand."""

    def __init__(self, path: Path, output: str) -> None:
        self._path, self._output = path, output
        self._sent: set[tuple[str, str, str]] = set()
        lines = path.read_text().splitlines() if path.is_file() else []
        for line in lines:
            try:
                self._sent.add(tuple(json.loads(line)))
            except (ValueError, TypeError):
                continue  # the line that a kill cut: its file is sent again

    def has(self, file: _File) -> bool:
        return (self._output, file.name, file.sha256) in self._sent

    def add(self, file: _File) -> None:
        note = (self._output, file.name, file.sha256)
        self._sent = {one for one in self._sent if one[:2] != note[:2]} | {note}
        with whole_file(self._path) as stream:
            stream.writelines(json.dumps(one).encode() + b"\n" for one in sorted(self._sent))
