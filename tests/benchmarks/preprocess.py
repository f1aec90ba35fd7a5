"""What a picture costs until the model can take it, on one core, beside the published processor's steps.

`python -m tests.benchmarks.preprocess`: photographs (drawn pictures where there are none) as they are and enlarged to
1,344 pixels, at 16 and at 4 crops. Each side runs as it does in a training, in turns and on the same core: ours and
Pillow's bare resize in a process with the environment of this loader's workers and memory for the crops that is used
again, the published steps in a plain one. What the device does in place of the worker (normalisation and global view)
stands in columns of its own.
"""

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from data.geometry import canvas
from data.images import open_picture
from tests.benchmarks.figures import Figure, command, counted, of_rounds
from tests.benchmarks.pairs import Timing, keep_to_one_core, print_table
from tests.benchmarks.pictures import pictures, resized
from tests.benchmarks.published import CROP, published_inputs
from tests.conftest import MATERIAL
from train.model.crops import canvas_crops
from train.model.image_embedding import global_views, normalise
from train.pipeline.makers import ENVIRONMENT
from train.pipeline.pixels import fill_crops

Ways = Callable[[bytes, int], dict[str, Callable[[], object]]]

ENLARGED = 1344
NEEDED_AT_16 = 4.0
ALLOWED_AT_4 = 1.25
NEEDED_BYTES = 4.0
HEADER = (
    *("pictures", "num_crops", "decode", "published", "ours", "bare resize", "normalise", "view"),
    *("faster than published", "of the bare resize", "fewer bytes"),
)


def our_ways(data: bytes, num_crops: int) -> dict[str, Callable[[], object]]:
    """What a worker of this loader does with a photograph, and the bare resize out of it."""
    picture = open_picture(data)
    place = canvas(picture.width, picture.height, num_crops, CROP)
    size = (place.resized_width, place.resized_height)
    crops = np.empty((place.rows * place.columns, 3, CROP, CROP), np.uint8)
    return {
        "ours": lambda: fill_crops(picture, num_crops, CROP, crops),
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


def timed(sides: Sequence[Connection], data: bytes, num_crops: int, rounds: int) -> tuple[dict[str, Timing], float]:
    """Times of each way for one picture; how many times fewer bytes of crops leave the worker."""
    seconds: dict[str, list[float]] = {}
    for number in range(-1, rounds):
        for one in sides if number % 2 else reversed(sides):
            one.send((data, num_crops) if number < 0 else number)
            for name, taken in one.recv().items():
                if number >= 0:
                    seconds.setdefault(name, []).append(taken)
    picture = open_picture(data)
    place = canvas(picture.width, picture.height, num_crops, CROP)
    handed_on = place.rows * place.columns
    published = (num_crops + 1) * torch.float32.itemsize
    return {name: Timing(seconds=tuple(taken)) for name, taken in seconds.items()}, published / handed_on


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = argparse.ArgumentParser(prog="python -m tests.benchmarks.preprocess", description=__doc__)
    arguments.add_argument("--material", type=Path, default=MATERIAL, help="folder that holds clothing/")
    arguments.add_argument("--pictures", type=int, default=8, help="pictures (default: 8)")
    arguments.add_argument("--rounds", type=int, default=7, help="turns of each picture (default: 7)")
    return arguments


def measure(options: argparse.Namespace) -> list[Figure]:
    """Milliseconds a picture, and how many fewer bytes are handed on."""
    found = pictures(options.material, options.pictures)
    larger = tuple(resized(data, ENLARGED, quality=95) for data in found.files)
    rows, figures = [], []
    with started(our_ways, ENVIRONMENT) as ours, started(their_ways, {}) as theirs:
        for size, files in (("as they are", found.files), (f"at {ENLARGED:,} px", larger)):
            for num_crops in (16, 4):
                each = [timed((ours, theirs), data, num_crops, options.rounds) for data in files]
                rows.append(row(f"{found.kind} {size}", num_crops, each))
                figures += figures_of(f"{found.kind} {size}, {num_crops} crops", num_crops, each)
    print_table(HEADER, rows)
    print("Milliseconds a picture; decoding is in none of the others. normalise and view are the device's work.")
    return figures


def row(name: str, num_crops: int, each: Sequence[tuple[dict[str, Timing], float]]) -> tuple[str, ...]:
    """A line of the table, from `timed` of each picture."""
    times = {name: statistics.mean(one[name].median_s for one, _ in each) * 1e3 for name in each[0][0]}
    faster, to_resize, fewer = ratios(each)
    cells = [f"{times[way]:.1f}" for way in ("decode", "published", "ours", "resize", "normalise", "view")]
    return (name, str(num_crops), *cells, f"{faster:.1f}×", f"{to_resize:.2f}×", f"{fewer:.1f}×")


def ratios(each: Sequence[tuple[dict[str, Timing], float]]) -> tuple[float, float, float]:
    """Times as fast as published and as long as the bare resize, of the middle picture; times fewer bytes, at least."""
    faster = statistics.median(one["ours"].times_faster_than(one["published"]) for one, _ in each)
    to_resize = statistics.median(one["resize"].times_faster_than(one["ours"]) for one, _ in each)
    return faster, to_resize, min(ratio for _, ratio in each)


def figures_of(name: str, num_crops: int, each: Sequence[tuple[dict[str, Timing], float]]) -> list[Figure]:
    """Time and bytes, with what is asked of them."""

    def mean_ms(way: str) -> list[float]:
        return [statistics.mean(taken) * 1e3 for taken in zip(*(one[way].seconds for one, _ in each), strict=True)]

    faster, to_resize, fewer = ratios(each)
    time_ = of_rounds(
        name,
        mean_ms("ours"),
        "ms a picture",
        higher_is_better=False,
        baseline=("published steps", mean_ms("published")),
        limit=("Pillow's bare resize", mean_ms("resize")),
    )
    if num_crops == 16:
        time_ = time_.asking(f"{NEEDED_AT_16:g}× as fast as published", faster >= NEEDED_AT_16)
    else:
        time_ = time_.asking(f"at most {ALLOWED_AT_4:g}× the bare resize", to_resize <= ALLOWED_AT_4)
    bytes_ = Figure(
        name=f"{name}: fewer bytes handed on", value=fewer, unit="×", baseline=counted("published float32", fewer, 1.0)
    )
    return [time_, bytes_.asking(f"{NEEDED_BYTES:g}×", fewer >= NEEDED_BYTES)]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    return command(parser(), measure, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
