"""Samples a second ready for the device: this loader, webdataset with the published processor's steps, and the limit.

    python -m tests.benchmarks.loader --material ../shared

Three ways in turns, on the same shards of photographs, with the processor's cores (two are what the figures in the
documentation were measured with):

- ours: packs of 4,096 tokens from two worker processes;
- theirs: `webdataset`, the published processor's steps and its tokenizer in a plain torch DataLoader, the best of 0, 1
  and 2 workers, sample by sample without collation;
- the limit: decoding and resizing to the canvas, both by Pillow, in two processes, nothing passed on, with the loader's
  own settings of the memory allocator.

All three are measured as a long training would find them: nothing counts until a second after the first pack or sample,
when processes have started and memory was used before, and all go through the pictures again and again. Asked are 4
times theirs at 16 crops and 80 % of the limit. Without the material they are drawn pictures and a tokenizer of bytes.
"""

import argparse
import io
import itertools
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import torch
import webdataset
from PIL import Image
from tokenizers import Tokenizer

from data.geometry import canvas
from data.images import check_picture
from data.index import write_index
from data.manifest import CHAT_TEMPLATES, Manifest
from data.schema import Sample
from data.shards import ShardWriter, iter_samples, shard_name
from tests.benchmarks.figures import Figure, command, of_rounds
from tests.benchmarks.pairs import print_table
from tests.benchmarks.pictures import pictures, resized, tokenizer_file
from tests.benchmarks.published import published_inputs
from tests.conftest import MATERIAL
from tests.factories.plans import published
from train.pipeline.loader import Loader
from train.pipeline.makers import ENVIRONMENT
from train.pipeline.opening import open_plan
from train.pipeline.plan import Plan

LONGER_SIDE = 1344
PROCESSES = 2
WARM_UP_S = 1.0
SHARDS = 4
TIMES_THEIRS, AT_CROPS, OF_THE_LIMIT = 4.0, 16, 0.8
QUESTION, ANSWER = "<|image_1|>\nWhat is shown in this picture?", "It is a coat."


def write_shards(folder: Path, photographs: Sequence[bytes], longer_side: int) -> Path:
    """Shards of photographs with a question each; `longer_side`: resized to so many pixels, 0: as they are."""
    entries, listed = [], []
    for number in range(SHARDS):
        own = list(enumerate(photographs))[number::SHARDS]
        with ShardWriter(folder / "train" / shard_name(number), number) as shard:
            for place, content in own:
                if longer_side:
                    content = resized(content, longer_side)
                picture = check_picture(content)
                messages = ({"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER})
                sample = Sample(key=f"{place:06d}", messages=messages, images=("jpg",), target={}, source={})
                entries.append(shard.add(sample, [picture], group=sample.key))
        listed.append({"name": shard_name(number), "bytes": shard.bytes, "sha256": shard.sha256, "samples": len(own)})
    write_index(folder / "train" / "index.arrow", entries)
    Manifest(
        counts={"train": {"samples": len(entries), "pictures": len(entries), "bytes": 0}},
        split_rule={},
        build={},
        chat_template={"name": "phi3v", "template": CHAT_TEMPLATES["phi3v"]},
        answer_template=None,
        question=QUESTION,
        fields={},
        shards={"train": listed},
        rejected={},
        leaks_prevented=0,
    ).save(folder)
    return folder


def plan_of(shards: Path, tokenizer: Path, num_crops: int) -> Plan:
    """One pack a step."""
    settings = published(num_crops=num_crops, over_long="error", global_batch_packs=1)
    return open_plan(shards, "train", settings, tokenizer_file=tokenizer, cache=shards)


def ours(plan: Plan, tokenizer: Path, seconds: float) -> float:
    """Samples a second of this project's loader."""
    with Loader(plan, tokenizer, rank=0, world=1, start_step=0, end_step=10**9, workers=PROCESSES) as loader:
        return rate_of((sum(len(batch.keys) for batch in batches) for _, batches in loader), seconds)


class Published:
    """A sample's steps as the published processor takes them."""

    def __init__(self, tokenizer: Path, num_crops: int) -> None:
        self.tokenizer = Tokenizer.from_file(str(tokenizer))
        self.num_crops = num_crops

    def __call__(self, sample: dict[str, Any]) -> dict[str, torch.Tensor]:
        pixels, (rows, columns) = published_inputs(sample["jpg"], self.num_crops)
        tokens = (rows * columns + 1) * 144 + 1 + (rows + 1) * 12
        before, after = "<|user|>\n", f"\nWhat is shown?<|end|>\n<|assistant|>\n{ANSWER}<|end|>\n"
        ids = [*self.tokenizer.encode(before).ids, *[-1] * tokens, *self.tokenizer.encode(after).ids]
        return {"pixel_values": pixels, "input_ids": torch.tensor(ids), "image_sizes": torch.tensor([rows, columns])}


def theirs(shards: Path, tokenizer: Path, num_crops: int, workers: int, seconds: float) -> float:
    """Samples a second of webdataset, the published steps and a plain DataLoader."""
    urls = [str(path) for path in sorted((shards / "train").glob("*.tar"))]
    stream = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).repeat().decode("pil")
    loader = torch.utils.data.DataLoader(
        stream.map(Published(tokenizer, num_crops)), batch_size=None, num_workers=workers
    )
    return rate_of((1 for _ in loader), seconds)


def rate_of(counts: Iterator[int], seconds: float) -> float:
    """Samples a second of a stream that says how many come at a time, once it is warm."""
    next(counts)
    warm = time.perf_counter() + WARM_UP_S
    while time.perf_counter() < warm:
        next(counts)
    begun = time.perf_counter()
    samples = 0
    while (spent := time.perf_counter() - begun) < seconds:
        samples += next(counts)
    return samples / spent


def decode_and_resize(shards: Path, num_crops: int, seconds: float, number: int, ready: Barrier, done: Any) -> None:
    """What no loader can do without, in one process over its part of the pictures."""
    pictures = [pictures[0] for _, pictures in iter_samples(shards, "train")][number::PROCESSES]

    def resize(content: bytes) -> None:
        picture = Image.open(io.BytesIO(content)).convert("RGB")
        place = canvas(picture.width, picture.height, num_crops)
        picture.resize((place.resized_width, place.resized_height), Image.Resampling.BILINEAR)

    def resized() -> Iterator[int]:
        for content in itertools.cycle(pictures):
            resize(content)
            yield 1

    ready.wait()
    done.put(rate_of(resized(), seconds))


def limit(shards: Path, num_crops: int, seconds: float) -> float:
    """Pictures a second decoded and resized in two processes."""
    context = multiprocessing.get_context("spawn")
    ready, done = context.Barrier(PROCESSES), context.Queue()
    kept = dict(os.environ)
    os.environ.update(ENVIRONMENT)
    try:
        processes = [
            context.Process(target=decode_and_resize, args=(shards, num_crops, seconds, number, ready, done))
            for number in range(PROCESSES)
        ]
        for process in processes:
            process.start()
    finally:
        os.environ.clear()
        os.environ.update(kept)
    rates = [done.get() for _ in processes]
    for process in processes:
        process.join()
    return sum(rates)


def in_rounds(ways: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Each way once a round, every other round in the opposite order; rates by name."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in list(ways) if number % 2 else reversed(ways):
            rates[name].append(ways[name]())
    return rates


def rates_of(shards: Path, tokenizer: Path, num_crops: int, seconds: float, rounds: int) -> dict[str, list[float]]:
    """Samples a second, round by round: ours, the limit, and theirs by workers."""
    plan = plan_of(shards, tokenizer, num_crops)
    ways: dict[str, Callable[[], float]] = {}
    for workers in (0, 1, 2):
        ways[f"theirs {workers}"] = lambda workers=workers: theirs(shards, tokenizer, num_crops, workers, seconds)  # type: ignore[misc]
    ways["ours"] = lambda: ours(plan, tokenizer, seconds)
    ways["limit"] = lambda: limit(shards, num_crops, seconds)
    return in_rounds(ways, rounds)


def figure_of(name: str, num_crops: int, rates: dict[str, list[float]]) -> Figure:
    """Ours beside the best of theirs and beside the limit, with what is asked."""
    best = max((way for way in rates if way.startswith("theirs")), key=lambda way: sum(rates[way]))
    workers = best.removeprefix("theirs ")
    figure = of_rounds(
        f"{name}, {num_crops} crops",
        rates["ours"],
        "samples/s",
        baseline=(f"webdataset, {workers} workers", rates[best]),
        limit=("decoded and resized", rates["limit"]),
    )
    assert figure.baseline is not None
    assert figure.limit is not None
    holds = figure.limit.ratio >= OF_THE_LIMIT
    asked = f"{OF_THE_LIMIT:.0%} of the limit"
    if num_crops >= AT_CROPS:
        holds = holds and figure.baseline.ratio >= TIMES_THEIRS
        asked = f"{TIMES_THEIRS:g}× theirs, {asked}"
    return figure.asking(asked, holds)


def row(num_crops: int, figure: Figure) -> tuple[str, ...]:
    """A line of the table."""
    theirs, limit = figure.baseline, figure.limit
    assert theirs is not None
    assert limit is not None
    return (
        *(figure.name.rpartition(",")[0], str(num_crops), f"{figure.value:.1f}"),
        *(f"{theirs.value:.1f} ({theirs.name.partition(', ')[2]})", f"{theirs.ratio:.2f}"),
        *(f"{limit.value:.1f}", f"{limit.ratio:.1%}", "holds" if figure.holds else "falls short"),
    )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = argparse.ArgumentParser(prog="python -m tests.benchmarks.loader", description=__doc__.splitlines()[0])
    arguments.add_argument("--material", type=Path, default=MATERIAL)
    arguments.add_argument("--photographs", type=int, default=600)
    arguments.add_argument(
        "--sizes", type=int, nargs="+", default=[0, LONGER_SIDE], help="pixels of the longer side; 0: as they are"
    )
    arguments.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--crops", type=int, nargs="+", default=[4, 16])
    arguments.add_argument("--work", type=Path, help="folder that keeps the shards for another time")
    return arguments


def measure(options: argparse.Namespace) -> list[Figure]:
    """Samples a second of each size and number of crops."""
    torch.set_num_threads(1)
    found = pictures(options.material, options.photographs)
    rows, figures = [], []
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = tokenizer_file(options.material, Path(scratch))
        for longer_side in options.sizes:
            kind = f"{found.kind} at {longer_side:,} px" if longer_side else f"{found.kind} as they are"
            name = f"shards-{found.kind.partition(' ')[0]}-{longer_side}-{len(found.files)}"
            shards = (options.work or Path(scratch)) / name
            if not (shards / "manifest.json").is_file():
                write_shards(shards, found.files, longer_side)
            for num_crops in options.crops:
                rates = rates_of(shards, tokenizer, num_crops, options.seconds, options.rounds)
                figures.append(figure_of(kind, num_crops, rates))
                rows.append(row(num_crops, figures[-1]))
                print(rows[-1], flush=True)
    heads = ("pictures", "crops", "ours /s", "theirs /s", "ours / theirs", "limit /s", "ours / limit", "asked")
    print_table(heads, rows)
    return figures


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    return command(parser(), measure, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
