"""Pictures a second from local files to shards: this builder, the bare decoder, and a writer that looks at nothing.

    python -m tests.benchmarks.shards --material ../shared

Three ways in turns over the same photographs (drawn pictures where there is no material), each of them several times
under different names and with other bytes behind its end:

- ours: `data.build` of a catalogue with two workers: every picture decoded in full, SHA-256, perceptual hash, near
  duplicates, tars, index, manifest; from the command to its end, start of the processes included;
- the bare decoder: Pillow's `load` and SHA-256 of every file in two processes, nothing kept, start included;
- `webdataset.ShardWriter`: copies the files into tars in one process, unchecked.
"""

import argparse
import csv
import hashlib
import io
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import webdataset
from PIL import Image

from tests.benchmarks.figures import Figure, command, of_rounds
from tests.benchmarks.pairs import in_turns
from tests.benchmarks.pictures import pictures
from tests.conftest import MATERIAL, ROOT

PROCESSES = 2
DIFFERENT = 1500
MAPPING = """
key: id
pictures: [image]
prompt: "<|image_1|>What is shown in this picture?"
answer: "{category}"
split:
  fractions: {train: 0.9, validation: 0.1}
"""


def catalogue(folder: Path, photographs: Sequence[bytes], count: int) -> list[Path]:
    """Write so many files, photographs again and again but never twice the same bytes, and a catalogue of them."""
    (folder / "pictures").mkdir()
    paths = []
    with (folder / "rows.csv").open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["id", "image", "category"])
        for number in range(count):
            path = folder / "pictures" / f"{number:06d}.jpg"
            path.write_bytes(photographs[number % len(photographs)] + b"%d" % number)
            rows.writerow([path.stem, f"pictures/{path.name}", "clothing"])
            paths.append(path)
    (folder / "mapping.yaml").write_text(MAPPING)
    return paths


def ours(folder: Path, _: list[Path]) -> None:
    """Build shards by the command."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    arguments = ["--preset", folder / "mapping.yaml", "--source", folder / "rows.csv", "--output", out]
    command = [sys.executable, "-m", "data.build", *map(str, arguments), "--workers", str(PROCESSES)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)


def decode(paths: list[Path]) -> int:
    """Decode and hash some files."""
    for path in paths:
        data = path.read_bytes()
        Image.open(io.BytesIO(data)).load()
        hashlib.sha256(data).hexdigest()
    return len(paths)


def bare(_: Path, paths: list[Path]) -> None:
    """Decode and hash all files in two processes."""
    with ProcessPoolExecutor(PROCESSES) as pool:
        chunks = [paths[first : first + 64] for first in range(0, len(paths), 64)]
        assert sum(pool.map(decode, chunks)) == len(paths)


def copied(folder: Path, paths: list[Path]) -> None:
    """Copy all files into tars."""
    with webdataset.ShardWriter(str(folder / "copied-%06d.tar"), maxcount=1000, verbose=0) as writer:
        for path in paths:
            writer.write({"__key__": path.stem, "jpg": path.read_bytes(), "json": {"category": "clothing"}})


WAYS = {"data.build, everything": ours, "Pillow and SHA-256 alone": bare, "ShardWriter, unchecked": copied}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.shards", description="Measure pictures a second from local files to shards."
    )
    arguments.add_argument("--material", type=Path, default=MATERIAL, help="folder with clothing/")
    arguments.add_argument("--pictures", type=int, default=14_000, help="files in all (default: 14,000)")
    arguments.add_argument("--rounds", type=int, default=3, help="runs of each way (default: 3)")
    return arguments


def measure(options: argparse.Namespace) -> list[Figure]:
    """Pictures a second of the ways in turns."""
    found = pictures(options.material, min(options.pictures, DIFFERENT))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = catalogue(folder, found.files, options.pictures)
        print(f"{len(paths):,} pictures of {sum(path.stat().st_size for path in paths) / len(paths):,.0f} bytes")
        ways = {way: lambda run=run: run(folder, paths) for way, run in WAYS.items()}  # type: ignore[misc]
        timings = in_turns(ways, options.rounds, warm_up=0, before=os.sync)
    rates = {way: [len(paths) / taken for taken in timing.seconds] for way, timing in timings.items()}
    for way, measured in rates.items():
        print(f"{way:28} {statistics.median(measured):8,.0f} pictures/s")
    (_, own), limit, unchecked = rates.items()
    figure = of_rounds(f"{len(paths):,} {found.kind} to shards", own, "pictures/s", baseline=unchecked, limit=limit)
    assert figure.limit is not None
    each = ", ".join(f"{one / other:.2f}" for one, other in zip(own, limit[1], strict=True))
    print(f"ours is {figure.limit.ratio:.2f} of the bare decoder (each round: {each})")
    return [figure]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    return command(parser(), measure, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
