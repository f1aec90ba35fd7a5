"""python -m data.verify: read every byte of a folder of shards and name each sample that is not as it was written."""

import sys
from pathlib import Path

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from data.accounting import Rows, check_rejected
from data.images import PictureError, check_picture
from data.index import Index, IndexEntry
from data.manifest import Manifest, file_sha256
from data.progress import progress
from data.schema import Sample, UserError
from data.shards import BLOCK, END, ShardError, parse_sample


def verify(folder: Path) -> Iterator[str]:
    """Check a folder: each shard's size and hash, each sample's hash, members and place, each picture, each row.

    Yields a line for whatever is wrong: the file, the sample, the byte.
    Raises ManifestError, IndexFileError where there is nothing to check by.
    """
    manifest = Manifest.load(folder)
    rows = Rows(manifest)
    for split in manifest.shards:
        yield from _split(folder, split, manifest, rows)
    yield from check_rejected(folder, manifest, rows)
    if missing := rows.missing():
        yield f"{folder}: {missing}"


@dataclass(slots=True)
class _Shard:
    """A shard as the manifest has it, and how far its samples were looked at."""

    path: Path
    said: dict[str, Any]
    there: bool = field(init=False)
    samples: int = 0
    end: int = 0
    """Byte behind the last sample so far."""

    def __post_init__(self) -> None:
        self.there = self.path.is_file()


def _split(folder: Path, split: str, manifest: Manifest, rows: Rows) -> Iterator[str]:
    shards = [_Shard(folder / split / said["name"], said) for said in manifest.shards[split]]
    for shard in shards:
        yield from _file(shard)
    for path in sorted((folder / split).glob("*.tar")):
        if path not in [shard.path for shard in shards]:
            yield f"{path}: the manifest does not list it"
    index = Index.open(folder / split / "index.arrow")
    pictures = 0
    with progress(f"verify {split}", "samples", len(index)) as report:
        for number in range(len(index)):
            entry = index.entry(number)
            pictures += len(entry.image_sizes)
            if not 0 <= entry.shard < len(shards):
                yield f"{index.path}: sample {entry.key!r} is in shard {entry.shard}, which the manifest does not list"
            else:
                yield from _sample(shards[entry.shard], entry, rows)
            report(1)
    for shard in shards:
        yield from _rest(shard)
    found = {
        "samples": len(index),
        "pictures": pictures,
        "bytes": sum(shard.path.stat().st_size for shard in shards if shard.there),
    }
    for name, count in found.items():
        if count != manifest.counts[split][name]:
            yield f"{index.path.parent}: {count:,} {name}, the manifest says {manifest.counts[split][name]:,}"


def _file(shard: _Shard) -> Iterator[str]:
    """A shard as a file: its size and its hash."""
    if not shard.there:
        yield f"{shard.path}: missing"
    elif shard.path.stat().st_size != shard.said["bytes"]:
        yield f"{shard.path}: {shard.path.stat().st_size:,} bytes, the manifest says {shard.said['bytes']:,}"
    elif file_sha256(shard.path) != shard.said["sha256"]:
        yield f"{shard.path}: its SHA-256 is not the manifest's"


def _rest(shard: _Shard) -> Iterator[str]:
    """What a shard has besides its samples: a tar's end, and nothing else."""
    if shard.samples != shard.said["samples"]:
        yield f"{shard.path}: {shard.samples:,} samples in the index, the manifest says {shard.said['samples']:,}"
    if shard.there:
        with shard.path.open("rb") as stream:
            stream.seek(shard.end)
            # Two of them would be enough to see that it is not one.
            if stream.read(2 * len(END)) != END:
                yield f"{shard.path}: from byte {shard.end:,} on there is something else than a tar's end"


def _sample(shard: _Shard, entry: IndexEntry, rows: Rows) -> Iterator[str]:
    """One sample: that it follows the one before, is as it was written, and is of a row of its own."""
    named = f"{shard.path}: sample {entry.key!r} at byte"
    if entry.offset > shard.end:
        yield f"{named} {entry.offset:,}: the bytes from {shard.end:,} on belong to no sample"
    elif entry.offset < shard.end:
        yield f"{named} {entry.offset:,}: it begins within the sample before it"
    shard.samples, shard.end = shard.samples + 1, max(shard.end, entry.offset + entry.length)
    try:
        if not shard.there:
            raise ShardError(shard.path, entry.key, entry.offset, "its shard is missing")
        buffer = _read(shard.path, entry)
        sample, pictures = parse_sample(buffer, entry, shard.path)
    except ShardError as error:
        rows.unread()
        if shard.there:
            yield f"{named} {error.byte:,}: {error.what}"
        return
    if wrong := rows.tick(sample.source.get("row")):
        yield f"{named} {entry.offset:,}: it {wrong}"
    if wrong := _misnamed(buffer, entry, sample):
        yield f"{named} {entry.offset:,}: {wrong}"
        return
    for data, member, size in zip(pictures, entry.members[1:], entry.image_sizes, strict=True):
        try:
            picture = check_picture(data)
        except PictureError as error:
            yield f"{named} {member.offset:,}: picture {member.name}: {error}"
            continue
        if (picture.width, picture.height) != size:
            found = f"{picture.width}×{picture.height}"
            yield f"{named} {member.offset:,}: {found}, the index says {size[0]}×{size[1]}"


def _read(path: Path, entry: IndexEntry) -> bytes:
    if entry.offset < 0 or entry.length < 0:
        raise ShardError(path, entry.key, entry.offset, "the index places it before the file's start")
    try:
        with path.open("rb") as tar:
            there = max(0, min(os.fstat(tar.fileno()).st_size - entry.offset, entry.length))
            return os.pread(tar.fileno(), there, entry.offset)
    except OSError as error:
        raise ShardError(path, entry.key, entry.offset, f"cannot be read ({error.strerror})") from error


def _misnamed(buffer: bytes, entry: IndexEntry, sample: Sample) -> str | None:
    """What the tar's names, the index and the sample itself do not agree on."""
    if ("json", *sample.images) != tuple(member.name for member in entry.members):
        return "its members are not those that it names"
    for member in entry.members:
        header = buffer[member.offset - entry.offset - BLOCK : member.offset - entry.offset]
        try:
            found = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            return f"no tar header before {member.name}: {error}"
        if (found.name, found.size) != (f"{entry.key}.{member.name}", member.size):
            return f"the tar calls {member.name} {found.name!r}, of {found.size:,} bytes"
    said = sum(len(message["content"].encode()) for message in sample.messages)
    if said != entry.text_bytes:
        return f"{said:,} bytes of text, the index says {entry.text_bytes:,}"
    if len(entry.image_sizes) != len(sample.images):
        return f"{len(sample.images)} pictures, the index says {len(entry.image_sizes)}"
    return None


def main(arguments: list[str] | None = None) -> int:
    """Verify a folder from the command line. Returns the exit code: 0 whole, 1 damaged, 2 not checked."""
    parser = argparse.ArgumentParser(
        prog="python -m data.verify", description="Check every hash, member, picture and row of a folder of shards."
    )
    parser.add_argument("folder", type=Path)
    values = parser.parse_args(arguments)
    damaged = 0
    try:
        manifest = Manifest.load(values.folder)
        for line in verify(values.folder):
            print(line)
            damaged += 1
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if damaged:
        print(f"{values.folder}: {damaged} faults; delete the files named above and run the same data.build again")
        return 1
    samples = sum(counts["samples"] for counts in manifest.counts.values())
    rejected = sum(manifest.rejected.values())
    print(
        f"{values.folder} is whole: {samples:,} samples, every hash, member and picture; {rejected:,} rows rejected, "
        "each with its reason"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
