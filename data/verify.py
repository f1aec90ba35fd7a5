"""python -m data.verify: read every byte of a folder of shards and name each sample that is not as it was written."""

import sys
from pathlib import Path

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
from collections.abc import Iterator
from itertools import chain

from data.images import PictureError, check_picture
from data.index import Index, IndexEntry
from data.manifest import Manifest, ManifestError, file_sha256
from data.progress import progress
from data.schema import UserError
from data.shards import ShardError, read_sample


def verify(folder: Path, split: str) -> Iterator[str]:
    """Check a split: each shard's size and hash, each sample's hash and members, each picture.

    Yields a line for whatever is wrong: the file, the sample, the byte.
    Raises ManifestError, IndexFileError where there is nothing to check by.
    """
    manifest = Manifest.load(folder)
    if split not in manifest.shards:
        raise ManifestError(f"{folder}/manifest.json has no split {split!r}, only {', '.join(sorted(manifest.shards))}")
    shards = manifest.shards[split]
    paths = [folder / split / shard["name"] for shard in shards]
    index = Index.open(folder / split / "index.arrow")
    if len(index) != manifest.counts[split]["samples"]:
        yield f"{index.path}: {len(index)} samples, the manifest says {manifest.counts[split]['samples']}"
    for path, shard in zip(paths, shards, strict=True):
        if not path.is_file():
            yield f"{path}: missing"
        elif path.stat().st_size != shard["bytes"]:
            yield f"{path}: {path.stat().st_size:,} bytes, the manifest says {shard['bytes']:,}"
        elif file_sha256(path) != shard["sha256"]:
            yield f"{path}: its SHA-256 is not the manifest's"
    with progress(f"verify {split}", "samples", len(index)) as report:
        for number in range(len(index)):
            entry = index.entry(number)
            if entry.shard >= len(paths):
                yield f"{index.path}: sample {entry.key!r} is in shard {entry.shard}, which the manifest does not list"
            elif paths[entry.shard].is_file():
                yield from _sample(paths[entry.shard], entry)
            report(1)


def _sample(path: Path, entry: IndexEntry) -> Iterator[str]:
    try:
        sample, pictures = read_sample(path, entry)
    except ShardError as error:
        yield f"{path}: sample {entry.key!r} at byte {error.byte:,}: {error.what}"
        return
    names = ("json", *sample.images)
    if names != tuple(member.name for member in entry.members):
        yield f"{path}: sample {entry.key!r} at byte {entry.offset:,}: its members are not those that it names"
        return
    for data, member, size in zip(pictures, entry.members[1:], entry.image_sizes, strict=True):
        try:
            picture = check_picture(data)
        except PictureError as error:
            yield f"{path}: sample {entry.key!r} at byte {member.offset:,}: picture {member.name}: {error}"
            continue
        if (picture.width, picture.height) != size:
            found = f"{picture.width}×{picture.height}"
            yield f"{path}: sample {entry.key!r} at byte {member.offset:,}: {found}, the index says {size[0]}×{size[1]}"


def main(arguments: list[str] | None = None) -> int:
    """Verify a folder from the command line. Returns the exit code: 0 whole, 1 damaged, 2 not checked."""
    parser = argparse.ArgumentParser(
        prog="python -m data.verify", description="Check every hash, member and picture of a folder of shards."
    )
    parser.add_argument("folder", type=Path)
    values = parser.parse_args(arguments)
    damaged = 0
    try:
        manifest = Manifest.load(values.folder)
        for line in chain.from_iterable(verify(values.folder, split) for split in manifest.shards):
            print(line)
            damaged += 1
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if damaged:
        print(f"{values.folder}: {damaged} faults; delete the shards named above and run the same data.build again")
        return 1
    samples = sum(counts["samples"] for counts in manifest.counts.values())
    print(f"{values.folder} is whole: {samples:,} samples, every hash, member and picture")
    return 0


if __name__ == "__main__":
    sys.exit(main())
