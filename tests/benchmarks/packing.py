"""How full packs are beside the most that any packing could reach, and how evenly ranks are loaded.

    python -m tests.benchmarks.packing [--work FOLDER]

For the sample catalogue and, where they are there, the photographs of the material at 1, 4, 9 and 16 crops, and for a
long-tailed mix of texts and pictures that is drawn here: fill, its bound, work over 64 ranks with 4 packs each, what no
dealing of these packs gets below, and samples packed a second of this process's time.

Asked at 4 and 16 crops: 99.5 % of the possible fill, and 1.05 between the rank with most work and the mean, for sets
alike; for the mix, 98 % of 4,096 tokens and 97 % of 16,384.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.geometry import grids, image_tokens
from tests.benchmarks.figures import Figure, command, counted, of_rounds
from tests.benchmarks.pairs import print_table
from tests.benchmarks.pictures import tokenizer_file
from tests.conftest import MATERIAL
from tests.factories.plans import published
from train.pipeline.bound import fewest_packs
from train.pipeline.dealing import Pack, balance, deal_packs, work_of
from train.pipeline.opening import open_plan
from train.pipeline.order import EpochOrder, Stream
from train.pipeline.pack import pack_window

RANKS, PACKS_A_RANK = 64, 4
CATALOGUE_ROWS = 3040
OF_POSSIBLE, EVEN = 0.995, 1.05
MIX = "mix"
MIX_FILL = {4096: 0.98, 16384: 0.97}
HEADS = (
    "set",
    "crops",
    "tokens",
    "samples",
    "fill",
    "possible",
    "of it",
    "work max/mean",
    "no dealing below",
    "random",
)
HEADS += ("with waiting", "random", "samples/s", "asked")


def packed(tokens: np.ndarray, crops: np.ndarray, capacity: int, window: int) -> list[Pack]:
    """One epoch's packs."""
    order = EpochOrder(
        [Stream([len(tokens)], seed=0, block_shards=64, shuffle=True, number=0)],
        [len(tokens)],
        window=window,
        seed=0,
        shuffle=True,
    )
    packs: list[Pack] = []
    for number in range(order.windows):
        members = order.window(0, number)
        found = pack_window(members, tokens[members], capacity=capacity, shuffle=True, seed=0, epoch=0, window=number)
        for pack in map(found.of, range(len(found))):
            work = work_of(tokens[pack], int(crops[pack].sum()))
            values = {"samples": tuple(pack.tolist()), "tokens": int(tokens[pack].sum()), "labels": 0, "crops": 0}
            packs.append(Pack(number=len(packs), work=work, **values))
    return packs


def least(packs: list[Pack]) -> float:
    """What the most that a rank carries, by the mean, cannot be less than, however these packs are dealt.

    Of the k heaviest packs either two are on one rank, with the lightest beside them, or each is on a rank of its own;
    then those k ranks carry them and at least the lightest that fill their places up.
    """
    work = np.sort([pack.work for pack in packs])[::-1].astype(np.float64)
    beside = PACKS_A_RANK - 1
    lightest = np.concatenate([[0], np.cumsum(work[::-1])])
    found = 1.0
    for k in range(1, RANKS + 1):
        apart = (work[:k].sum() + lightest[beside * k]) / k
        together = work[k - 2] + work[k - 1] + lightest[beside - 1] if k > 1 else np.inf
        found = max(found, min(apart, together) / (work.sum() / RANKS))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One epoch of a set, packed and dealt."""

    name: str
    num_crops: int
    capacity: int
    samples: int
    fill: float
    possible: float
    """The fill that no packing goes beyond."""
    in_order: float
    """The fill of samples put together as they come, a new pack whenever one does not fit."""
    sums: float
    """Work of the rank with most over the mean, by the batch's sums; the mean of the batches."""
    waiting: float
    """The same with waiting for each other at every pack."""
    random_sums: float
    random_waiting: float
    bound: float
    """What no dealing of these packs gets `sums` below."""
    rates: tuple[float, ...]
    """Samples packed a second of this process's time, round by round."""

    @property
    def of_possible(self) -> float:
        """The share of the possible fill."""
        return self.fill / self.possible

    @property
    def fills(self) -> bool:
        """Whether the fill is what is asked."""
        return self.fill >= MIX_FILL[self.capacity] if self.name == MIX else self.of_possible >= OF_POSSIBLE

    @property
    def verdict(self) -> str:
        """In the table."""
        if self.name == MIX or not self.fills:
            return "holds" if self.fills else "falls short"
        return "holds" if self.sums <= EVEN else "fill holds, work cannot" if self.bound > EVEN else "falls short"

    def row(self) -> tuple[str, ...]:
        """A line of the table."""
        return (
            *(self.name, str(self.num_crops), f"{self.capacity:,}", f"{self.samples:,}", f"{self.fill:.2%}"),
            *(f"{self.possible:.2%}", f"{self.of_possible:.2%}", f"{self.sums:.3f}", f"{self.bound:.3f}"),
            *(f"{self.random_sums:.3f}", f"{self.waiting:.3f}", f"{self.random_waiting:.3f}"),
            *(f"{statistics.median(self.rates):,.0f}", self.verdict),
        )

    def figures(self) -> list[Figure]:
        """Fill, evenness and speed."""
        name = f"{self.name}, {self.num_crops} crops, {self.capacity:,} tokens"
        fill = Figure(
            name=f"{name}: fill",
            value=100 * self.fill,
            unit="%",
            baseline=counted("as they come", 100 * self.fill, 100 * self.in_order),
            limit=counted("possible", 100 * self.fill, 100 * self.possible),
        )
        asked = f"{MIX_FILL[self.capacity]:.0%}" if self.name == MIX else f"{OF_POSSIBLE:.1%} of the possible"
        even = Figure(
            name=f"{name}: fullest rank of {RANKS} over the mean",
            value=self.sums,
            unit="×",
            higher_is_better=False,
            baseline=counted("dealt at random", self.sums, self.random_sums, higher_is_better=False),
            limit=counted("no dealing below", self.sums, self.bound, higher_is_better=False),
        )
        if self.name != MIX and self.bound <= EVEN:
            even = even.asking(f"at most {EVEN:g}", self.sums <= EVEN)
        return [fill.asking(asked, self.fills), even, of_rounds(f"{name}: packed", self.rates, "samples/s")]


def in_order(tokens: np.ndarray, capacity: int) -> float:
    """The fill of samples put together as they come."""
    packs, held = 1, 0
    for count in tokens.tolist():
        if held + count > capacity:
            packs, held = packs + 1, 0
        held += count
    return float(tokens.sum()) / (packs * capacity)


def find(
    name: str, num_crops: int, tokens: np.ndarray, crops: np.ndarray, capacity: int, window: int, rounds: int
) -> Found:
    """Pack one epoch, deal it, and say what is found."""
    tokens, crops = tokens[tokens <= capacity].astype(np.int64), crops[tokens <= capacity]
    rates = []
    for _ in range(rounds):
        begun = time.process_time()
        packs = packed(tokens, crops, capacity, window)
        rates.append(len(tokens) / (time.process_time() - begun))
    fewest = fewest_packs(np.bincount(tokens), capacity, len(packs))
    size = RANKS * PACKS_A_RANK
    dealt, at_random, bounds = [], [], []
    rng = np.random.default_rng(0)
    shuffled = tokens[rng.permutation(len(tokens))]
    enough = packs * -(-size // len(packs))
    for first in range(0, len(enough) - size + 1, size):
        batch = enough[first : first + size]
        dealt.append(balance(deal_packs(batch, RANKS)))
        bounds.append(least(batch))
        mixed = [batch[place] for place in rng.permutation(len(batch))]
        at_random.append(balance([mixed[start : start + RANKS] for start in range(0, size, RANKS)]))
    total = tokens.sum() / capacity
    means = [
        float(np.mean([getattr(one, field) for one in found]))
        for found in (dealt, at_random)
        for field in ("sums", "waiting")
    ]
    return Found(
        name=name,
        num_crops=num_crops,
        capacity=capacity,
        samples=len(tokens),
        fill=float(total / len(packs)),
        possible=float(total / fewest),
        in_order=in_order(shuffled, capacity),
        sums=means[0],
        waiting=means[1],
        random_sums=means[2],
        random_waiting=means[3],
        bound=float(np.mean(bounds)),
        rates=tuple(rates),
    )


def long_tailed(samples: int, capacity: int, num_crops: int) -> tuple[np.ndarray, np.ndarray]:
    """Texts of log-normal length, half of them with 1 to 3 pictures of common sizes; (tokens, crops)."""
    rng = np.random.default_rng(0)
    tokens = np.exp(rng.normal(5.3, 1.2, samples)).astype(np.int64).clip(8, capacity)
    pictures = np.where(rng.random(samples) < 0.5, rng.integers(1, 4, samples), 0)
    sizes = rng.choice(np.array([[400, 533], [640, 480], [1024, 1024], [300, 900], [1600, 900]]), pictures.sum())
    shapes = grids(sizes, num_crops)
    owners = np.repeat(np.arange(samples), pictures)
    crops = np.zeros(samples, np.int64)
    np.add.at(tokens, owners, image_tokens(shapes[:, 0], shapes[:, 1]))
    np.add.at(crops, owners, shapes.prod(axis=1) + 1)
    return tokens, crops


def shards_of(material: Path, work: Path) -> dict[str, Path]:
    """Shards of the sample catalogue, and of the photographs where there are any, built where they are not there."""
    catalogue, photographs = work / "catalogue", material / "clothing" / "rows.csv"
    builds = {"catalogue": ("burberry", catalogue / "catalogue.csv")}
    if photographs.is_file():
        builds["photographs"] = ("clothing", photographs)
    folders = {name: work / f"shards-{name}" for name in builds}
    if not (catalogue / "catalogue.csv").is_file():
        run("data.sample", str(catalogue), "--rows", str(CATALOGUE_ROWS), "--seed", "0")
    for name, (preset, source) in builds.items():
        if not (folders[name] / "manifest.json").is_file():
            run("data.build", "--preset", preset, "--source", str(source), "--output", str(folders[name]))
    return folders


def run(module: str, *arguments: str) -> None:
    """Run a module of this project; raises CalledProcessError where it fails."""
    subprocess.run([sys.executable, "-m", module, *arguments], stdout=subprocess.DEVNULL, check=True)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = argparse.ArgumentParser(prog="python -m tests.benchmarks.packing", description=__doc__.splitlines()[0])
    arguments.add_argument("--material", type=Path, default=MATERIAL, help="where clothing and phi3v/tokenizer lie")
    arguments.add_argument("--window", type=int, default=4096)
    arguments.add_argument("--crops", type=int, nargs="+", default=[1, 4, 9, 16], help="for the sets of shards")
    arguments.add_argument("--samples", type=int, default=60_000, help="of the mix")
    arguments.add_argument("--rounds", type=int, default=3, help="of packing, for its speed")
    arguments.add_argument("--work", type=Path, help="folder that keeps the shards for another time")
    return arguments


def measure(options: argparse.Namespace) -> list[Figure]:
    """Fill, evenness and speed of each set."""
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        tokenizer = tokenizer_file(options.material, work)
        for name, folder in shards_of(options.material, work).items():
            for crops in options.crops:
                settings = published(num_crops=crops, window=options.window, global_batch_packs=16)
                plan = open_plan(folder, "train", settings, tokenizer_file=tokenizer, cache=work / "cache")
                sizes = plan.lengths.tokens, plan.lengths.crops
                found.append(find(name, crops, *sizes, 4096, options.window, options.rounds))
        for capacity in MIX_FILL:
            for crops in (4, 16):
                sizes = long_tailed(options.samples, capacity, crops)
                found.append(find(MIX, crops, *sizes, capacity, options.window, options.rounds))
    print_table(HEADS, [one.row() for one in found])
    return [figure for one in found for figure in one.figures()]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    return command(parser(), measure, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
