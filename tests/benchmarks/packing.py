"""How full packs are beside the most that any packing could reach, and how evenly ranks are loaded.

    python -m tests.benchmarks.packing SHARDS [SHARDS …] --material ../shared

For each folder of shards (say of the sample catalogue and of photographs) at 1, 4, 9 and 16 crops, and for a
long-tailed mix of texts and pictures that is drawn here: fill, its bound, work over 64 ranks with 4 packs each, and
samples packed a second of this process's time.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from data.geometry import grids, image_tokens
from tests.conftest import MATERIAL
from tests.factories.plans import published
from train.pipeline.bound import fewest_packs
from train.pipeline.dealing import Pack, balance, deal_packs, work_of
from train.pipeline.opening import open_plan
from train.pipeline.order import EpochOrder, Stream
from train.pipeline.pack import pack_window

RANKS, PACKS_A_RANK = 64, 4


def report(name: str, tokens: np.ndarray, crops: np.ndarray, capacity: int, window: int) -> None:
    """Pack one epoch and print a line about it."""
    tokens, crops = tokens[tokens <= capacity].astype(np.int64), crops[tokens <= capacity]
    stream = Stream([len(tokens)], seed=0, block_shards=64, shuffle=True, number=0)
    order = EpochOrder([stream], [len(tokens)], window=window, seed=0, shuffle=True)
    packs: list[Pack] = []
    begun = time.process_time()
    for number in range(order.windows):
        members = order.window(0, number)
        found = pack_window(members, tokens[members], capacity=capacity, shuffle=True, seed=0, epoch=0, window=number)
        for pack in map(found.of, range(len(found))):
            work = work_of(tokens[pack], int(crops[pack].sum()))
            values = {"samples": tuple(pack.tolist()), "tokens": int(tokens[pack].sum()), "labels": 0, "crops": 0}
            packs.append(Pack(number=len(packs), work=work, **values))
    rate = len(tokens) / (time.process_time() - begun)
    fewest = fewest_packs(np.bincount(tokens), capacity, len(packs))
    size = RANKS * PACKS_A_RANK
    dealt, at_random = [], []
    rng = np.random.default_rng(0)
    enough = packs * -(-size // len(packs))
    for first in range(0, len(enough) - size + 1, size):
        batch = enough[first : first + size]
        dealt.append(balance(deal_packs(batch, RANKS)))
        mixed = [batch[place] for place in rng.permutation(len(batch))]
        at_random.append(balance([mixed[start : start + RANKS] for start in range(0, size, RANKS)]))
    total = tokens.sum() / capacity
    sums, waits = (np.mean([getattr(one, field) for one in dealt]) for field in ("sums", "waiting"))
    random_sums, random_waits = (np.mean([getattr(one, field) for one in at_random]) for field in ("sums", "waiting"))
    print(
        f"{name:24} {capacity:6,} {len(tokens):8,} samples  fill {total / len(packs):7.2%} of at most "
        f"{total / fewest:7.2%} = {fewest / len(packs):7.2%}  work max/mean {sums:.3f} (random {random_sums:.3f}), "
        f"waiting {waits:.3f} (random {random_waits:.3f})  {rate:9,.0f} samples/s",
        flush=True,
    )


def long_tailed(samples: int, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """Texts of log-normal length, half of them with 1 to 3 pictures of common sizes, at 16 crops; (tokens, crops)."""
    rng = np.random.default_rng(0)
    tokens = np.exp(rng.normal(5.3, 1.2, samples)).astype(np.int64).clip(8, capacity)
    pictures = np.where(rng.random(samples) < 0.5, rng.integers(1, 4, samples), 0)
    sizes = rng.choice(np.array([[400, 533], [640, 480], [1024, 1024], [300, 900], [1600, 900]]), pictures.sum())
    shapes = grids(sizes, 16)
    owners = np.repeat(np.arange(samples), pictures)
    crops = np.zeros(samples, np.int64)
    np.add.at(tokens, owners, image_tokens(shapes[:, 0], shapes[:, 1]))
    np.add.at(crops, owners, shapes.prod(axis=1) + 1)
    return tokens, crops


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", nargs="+", type=Path)
    parser.add_argument("--material", type=Path, default=MATERIAL, help="where phi3v/tokenizer lies")
    parser.add_argument("--window", type=int, default=4096)
    parser.add_argument("--cache", type=Path, help="where counted texts are kept")
    options = parser.parse_args()
    for folder in options.shards:
        for crops in (1, 4, 9, 16):
            settings = published(num_crops=crops, window=options.window, global_batch_packs=16)
            tokenizer = options.material / "phi3v/tokenizer/tokenizer.json"
            plan = open_plan(folder, "train", settings, tokenizer_file=tokenizer, cache=options.cache)
            lengths = plan.lengths
            report(f"{folder.name}, {crops} crops", lengths.tokens, lengths.crops, 4096, options.window)
    for capacity in (4096, 16384):
        report("long-tailed mix", *long_tailed(60_000, capacity), capacity, options.window)


if __name__ == "__main__":
    main()
