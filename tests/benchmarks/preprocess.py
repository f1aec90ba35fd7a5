"""What a picture costs until the model can take it, on one core, beside the published processor's steps.

`python -m tests.benchmarks.preprocess`: photographs as they are and enlarged to 1,344 pixels, at 16 and at 4 crops.
Each side runs as it does in a training, in turns and on the same core: ours and Pillow's bare resize in a process with
the environment of this loader's workers and memory for the crops that is used again, the published steps in a plain
one. What the device does in place of the worker (normalisation and global view) stands in columns of its own.
"""

import argparse
import io
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from PIL import Image

from data.geometry import canvas
from data.images import open_picture
from tests.benchmarks.pairs import Timing, keep_to_one_core, print_table
from tests.benchmarks.published import CROP, published_inputs
from tests.conftest import MATERIAL
from train.model.crops import canvas_crops
from train.model.image_embedding import global_views, normalise
from train.pipeline.makers import ENVIRONMENT

Ways = Callable[[bytes, int], dict[str, Callable[[], object]]]

ENLARGED = 1344
NEEDED_AT_16 = 4.0
ALLOWED_AT_4 = 1.25
NEEDED_BYTES = 4.0
HEADER = (
    *("photograph", "num_crops", "decode", "published", "ours", "bare resize", "normalise", "view"),
    *("faster than published", "of the bare resize", "fewer bytes"),
)


def photographs(folder: Path, count: int) -> list[bytes]:
    """The first so many files of the catalogue's training pictures."""
    return [path.read_bytes() for path in sorted((folder / "images/train").glob("*.jpg"))[:count]]


def enlarged(data: bytes, longer_side: int = ENLARGED) -> bytes:
    """A photograph whose longer side has so many pixels, as JPEG."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    factor = longer_side / max(picture.size)
    size = (round(picture.width * factor), round(picture.height * factor))
    out = io.BytesIO()
    picture.resize(size, Image.Resampling.BICUBIC).save(out, "JPEG", quality=95)
    return out.getvalue()


def our_ways(data: bytes, num_crops: int) -> dict[str, Callable[[], object]]:
    """What a worker of this loader does with a photograph, and the bare resize out of it."""
    picture = open_picture(data)
    place = canvas(picture.width, picture.height, num_crops, CROP)
    size = (place.resized_width, place.resized_height)
    crops, _ = canvas_crops(picture, num_crops)
    return {
        "ours": lambda: canvas_crops(picture, num_crops, out=crops),
        "resize": lambda: picture.resize(size, Image.Resampling.BILINEAR),
        "decode": lambda: open_picture(data),
    }


def their_ways(data: bytes, num_crops: int) -> dict[str, Callable[[], object]]:
    """The published steps, and what the device does in place of our worker."""
    picture = open_picture(data)
    crops, grid = canvas_crops(picture, num_crops)
    on_device = torch.from_numpy(crops)
    pixels = normalise(on_device)
    published, _ = published_inputs(picture, num_crops)
    assert torch.equal(pixels, published[1 : 1 + len(crops)])
    return {
        "published": lambda: published_inputs(picture, num_crops),
        "normalise": lambda: normalise(on_device),
        "view": lambda: global_views(pixels, [grid], [0], CROP),
    }


def side(make: Ways, pipe: Connection) -> None:
    """Time one call of each way whenever asked to, as a process of its own; a new photograph comes with its crops."""
    keep_to_one_core()
    ways: dict[str, Callable[[], object]] = {}
    while (asked := pipe.recv()) is not None:
        if isinstance(asked, tuple):
            ways = make(*asked)
        pipe.send({name: _seconds(way) for name, way in ways.items()})


def _seconds(way: Callable[[], object]) -> float:
    start = time.process_time()
    way()
    return time.process_time() - start


@contextmanager
def started(make: Ways, environment: dict[str, str]) -> Iterator[Connection]:
    """A side in a process that starts with these variables too."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        process = context.Process(target=side, args=(make, there), daemon=True)
        process.start()
    finally:
        for name in environment:
            os.environ.pop(name)
        os.environ.update(before)
    yield here
    here.send(None)
    process.join()


def measure(sides: Sequence[Connection], data: bytes, num_crops: int, rounds: int) -> tuple[dict[str, Timing], float]:
    """Times of each way for one photograph; how many times fewer bytes leave the worker."""
    seconds: dict[str, list[float]] = {}
    for number in range(-1, rounds):
        for one in sides if number % 2 else reversed(sides):
            one.send((data, num_crops) if number < 0 else number)
            for name, taken in one.recv().items():
                if number >= 0:
                    seconds.setdefault(name, []).append(taken)
    picture = open_picture(data)
    crops, _ = canvas_crops(picture, num_crops)
    published = (num_crops + 1) * 3 * CROP * CROP * torch.float32.itemsize
    return {name: Timing(seconds=tuple(taken)) for name, taken in seconds.items()}, published / crops.nbytes


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns 1 if a bound is missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.preprocess", description=__doc__)
    parser.add_argument("--material", type=Path, default=MATERIAL, help="folder that holds clothing/")
    parser.add_argument("--pictures", type=int, default=8, help="photographs (default: 8)")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each photograph (default: 7)")
    options = parser.parse_args(arguments)
    files = photographs(options.material / "clothing", options.pictures)
    with started(our_ways, ENVIRONMENT) as ours, started(their_ways, {}) as theirs:
        missed = compare((ours, theirs), files, options.rounds)
    for line in missed:
        print(f"missed: {line}", file=sys.stderr)
    return 1 if missed else 0


def compare(sides: Sequence[Connection], files: list[bytes], rounds: int) -> list[str]:
    """Measure all photographs and print the table; returns the bounds that are missed."""
    rows, missed = [], []
    for size, sources in (("as it is", files), (f"{ENLARGED:,} px", [enlarged(data) for data in files])):
        for num_crops in (16, 4):
            found = [measure(sides, data, num_crops, rounds) for data in sources]
            times = {name: statistics.mean(one[name].median_s for one, _ in found) * 1e3 for name in found[0][0]}
            faster = statistics.median(one["ours"].times_faster_than(one["published"]) for one, _ in found)
            to_resize = statistics.median(one["resize"].times_faster_than(one["ours"]) for one, _ in found)
            fewer = min(ratio for _, ratio in found)
            cells = [f"{times[name]:.1f}" for name in ("decode", "published", "ours", "resize", "normalise", "view")]
            rows.append((size, str(num_crops), *cells, f"{faster:.1f}×", f"{to_resize:.2f}×", f"{fewer:.1f}×"))
            where = f"{size}, {num_crops} crops"
            if num_crops == 16 and faster < NEEDED_AT_16:
                missed.append(f"{where}: {faster:.2f}× as fast as the published steps, needs {NEEDED_AT_16:g}×")
            if num_crops == 4 and to_resize > ALLOWED_AT_4:
                missed.append(f"{where}: {to_resize:.2f}× the time of the bare resize, at most {ALLOWED_AT_4:g}×")
            if fewer < NEEDED_BYTES:
                missed.append(f"{where}: {fewer:.2f}× fewer bytes, needs {NEEDED_BYTES:g}×")
    print_table(HEADER, rows)
    print("Milliseconds a picture; decoding is in none of the others. normalise and view are the device's work.")
    return missed


if __name__ == "__main__":
    raise SystemExit(main())
