"""Samples a second ready for the device: this loader, webdataset with the published processor's steps, and the limit.

    python -m tests.benchmarks.loader --material ../shared

Three ways in turns, on the same shards of photographs, with the processor's cores (two are what the figures in the
documentation were measured with):

- ours: packs of 4,096 tokens from two worker processes;
- theirs: `webdataset`, the published processor's steps and its tokenizer in a plain torch DataLoader, the best of 0, 1
  and 2 workers, sample by sample without collation;
- the limit: decoding and resizing to the canvas, both by Pillow, in two processes, nothing passed on, with the loader's
  own settings of the memory allocator.

Starting processes and the first pack or sample are taken off in all three. Asked are 4 times theirs at 16 crops and
80 % of the limit.
"""

import argparse
import io
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
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
from tests.benchmarks.pairs import print_table
from tests.benchmarks.published import published_inputs
from tests.conftest import MATERIAL
from tests.factories.plans import published
from train.pipeline.makers import ENVIRONMENT
from train.pipeline.opening import open_plan
from train.pipeline.plan import Plan
from train.pipeline.rate import loader_rate

LONGER_SIDE = 1344
PROCESSES = 2
SHARDS = 4
TIMES_THEIRS, AT_CROPS, OF_THE_LIMIT = 4.0, 16, 0.8
QUESTION, ANSWER = "<|image_1|>\nWhat is shown in this picture?", "It is a coat."


def write_shards(folder: Path, photographs: list[Path], longer_side: int | None) -> Path:
    """Shards of photographs with a question each; `longer_side`: resized to so many pixels."""
    entries, listed = [], []
    for number in range(SHARDS):
        own = photographs[number::SHARDS]
        with ShardWriter(folder / "train" / shard_name(number), number) as shard:
            for photograph in own:
                content = photograph.read_bytes()
                if longer_side:
                    content = resized(content, longer_side)
                picture = check_picture(content)
                messages = ({"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER})
                sample = Sample(key=photograph.stem, messages=messages, images=("jpg",), target={}, source={})
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


def resized(content: bytes, longer_side: int) -> bytes:
    """A photograph with a longer side of so many pixels, as JPEG."""
    picture = Image.open(io.BytesIO(content)).convert("RGB")
    scale = longer_side / max(picture.size)
    out = io.BytesIO()
    size = (round(picture.width * scale), round(picture.height * scale))
    picture.resize(size, Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
    return out.getvalue()


def plan_of(shards: Path, tokenizer: Path, num_crops: int) -> Plan:
    """One pack a step."""
    settings = published(num_crops=num_crops, over_long="error", global_batch_packs=1)
    return open_plan(shards, "train", settings, tokenizer_file=tokenizer, cache=shards)


def ours(plan: Plan, tokenizer: Path, seconds: float) -> float:
    """Samples a second of this project's loader."""
    return loader_rate(plan, tokenizer, workers=PROCESSES, seconds=seconds, packs=10**9).samples_per_s


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
    stream = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode("pil")
    loader = torch.utils.data.DataLoader(
        stream.map(Published(tokenizer, num_crops)), batch_size=None, num_workers=workers
    )
    return rate_of(iter(loader), seconds)


def rate_of(stream: Iterator[Any], seconds: float) -> float:
    """Items a second after the first."""
    next(stream)
    begun = time.perf_counter()
    spent, count = 0.0, 0
    for _ in stream:
        count += 1
        spent = time.perf_counter() - begun
        if spent >= seconds:
            break
    return count / spent


def decode_and_resize(shards: Path, num_crops: int, seconds: float, number: int, ready: Barrier, done: Any) -> None:
    """What no loader can do without, in one process over its part of the pictures."""
    pictures = [pictures[0] for _, pictures in iter_samples(shards, "train")][number::PROCESSES]

    def resize(content: bytes) -> None:
        picture = Image.open(io.BytesIO(content)).convert("RGB")
        place = canvas(picture.width, picture.height, num_crops)
        picture.resize((place.resized_width, place.resized_height), Image.Resampling.BILINEAR)

    for content in pictures[:10]:
        resize(content)
    ready.wait()
    begun = time.perf_counter()
    count = 0
    while (spent := time.perf_counter() - begun) < seconds:
        resize(pictures[count % len(pictures)])
        count += 1
    done.put(count / spent)


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


def measure(ways: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Each way once a round, every other round in the opposite order; rates by name."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in list(ways) if number % 2 else reversed(ways):
            rates[name].append(ways[name]())
    return rates


def ratio(rates: dict[str, list[float]], over: str, under: str) -> float:
    """The middle one of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(rates[over], rates[under], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--material", type=Path, default=MATERIAL)
    parser.add_argument("--photographs", type=int, default=600)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--crops", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--work", type=Path, help="folder that keeps the shards for another time")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = arguments.material / "phi3v" / "tokenizer" / "tokenizer.json"
    photographs = sorted((arguments.material / "clothing" / "images" / "train").glob("*.jpg"))[: arguments.photographs]
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, longer_side in (("as they are", None), (f"{LONGER_SIDE:,} px", LONGER_SIDE)):
            shards = (arguments.work or Path(scratch)) / f"shards-{longer_side}-{len(photographs)}"
            if not (shards / "manifest.json").is_file():
                write_shards(shards, photographs, longer_side)
            for num_crops in arguments.crops:
                plan = plan_of(shards, tokenizer, num_crops)
                ways: dict[str, Callable[[], float]] = {
                    f"theirs {workers}": lambda workers=workers, num_crops=num_crops, shards=shards: theirs(  # type: ignore[misc]
                        shards, tokenizer, num_crops, workers, arguments.seconds
                    )
                    for workers in (0, 1, 2)
                }
                ways["ours"] = lambda plan=plan: ours(plan, tokenizer, arguments.seconds)  # type: ignore[misc]
                ways["limit"] = lambda num_crops=num_crops, shards=shards: limit(shards, num_crops, arguments.seconds)  # type: ignore[misc]
                rates = measure(ways, arguments.rounds)
                best = max((name for name in ways if name.startswith("theirs")), key=lambda one: sum(rates[one]))
                middle = {one: f"{statistics.median(rates[one]):.1f}" for one in ways}
                beside, share = ratio(rates, "ours", best), ratio(rates, "ours", "limit")
                holds = share >= OF_THE_LIMIT and (num_crops < AT_CROPS or beside >= TIMES_THEIRS)
                rows.append(
                    (
                        name,
                        str(num_crops),
                        middle["ours"],
                        f"{middle[best]} ({best.removeprefix('theirs ')} workers)",
                        f"{beside:.2f}",
                        middle["limit"],
                        f"{share:.1%}",
                        "holds" if holds else "falls short",
                    )
                )
                print(rows[-1], flush=True)
    heads = ("photographs", "crops", "ours /s", "theirs /s", "ours / theirs", "limit /s", "ours / limit", "asked")
    print_table(heads, rows)


if __name__ == "__main__":
    main()
