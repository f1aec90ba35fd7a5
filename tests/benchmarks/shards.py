"""Pictures a second from local files to shards: this builder, the bare decoder, and a writer that looks at nothing.

    python -m tests.benchmarks.shards --material ../shared

Three ways in turns over the same photographs, each of them several times under different names and with other bytes
behind its end:

- ours: `data.build` of a catalogue with two workers: every picture decoded in full, SHA-256, perceptual hash, near
  duplicates, tars, index, manifest; from the command to its end, start of the processes included;
- the bare decoder: Pillow's `load` and SHA-256 of every file in two processes, nothing kept, start included;
- `webdataset.ShardWriter`: copies the files into tars in one process, unchecked.
"""

import argparse
import csv
import hashlib
import io
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import webdataset
from PIL import Image

from tests.conftest import MATERIAL, ROOT

PROCESSES = 2
MAPPING = """
key: id
pictures: [image]
prompt: "<|image_1|>What is shown in this picture?"
answer: "{category}"
split:
  fractions: {train: 0.9, validation: 0.1}
"""


def catalogue(folder: Path, photographs: list[Path], times: int) -> list[Path]:
    """Write each photograph so many times, never twice the same bytes, and a catalogue of them."""
    (folder / "pictures").mkdir()
    paths = []
    with (folder / "rows.csv").open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["id", "image", "category"])
        for time_ in range(times):
            for photograph in photographs:
                path = folder / "pictures" / f"{photograph.stem}-{time_}.jpg"
                path.write_bytes(photograph.read_bytes() + b"%d" % time_)
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


def main() -> None:
    """Run the ways in turns and print medians."""
    parser = argparse.ArgumentParser(description="Measure pictures a second from local files to shards.")
    parser.add_argument("--material", type=Path, default=MATERIAL, help="folder with clothing/")
    parser.add_argument("--times", type=int, default=8, help="how often each photograph is there (default: 8)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each way (default: 3)")
    values = parser.parse_args()
    photographs = sorted((values.material / "clothing" / "images").glob("*/*.jpg"))
    if not photographs:
        parser.error(f"{values.material}: there are no photographs in clothing/images")
    rates: dict[str, list[float]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = catalogue(folder, photographs, values.times)
        print(f"{len(paths):,} pictures of {sum(path.stat().st_size for path in paths) / len(paths):,.0f} bytes")
        for _ in range(values.rounds):
            for way, run in WAYS.items():
                start = time.perf_counter()
                run(folder, paths)
                rates[way].append(len(paths) / (time.perf_counter() - start))
    for way, measured in rates.items():
        print(f"{way:28} {statistics.median(measured):8,.0f} pictures/s")
    own, limit = rates["data.build, everything"], rates["Pillow and SHA-256 alone"]
    shares = [one / other for one, other in zip(own, limit, strict=True)]
    each = ", ".join(f"{share:.2f}" for share in shares)
    print(f"ours is {statistics.median(shares):.2f} of the bare decoder (each round: {each})")


if __name__ == "__main__":
    main()
