"""Predictions a second, batched against one at a time, on the same samples of a split.

    python -m tests.benchmarks.predict MODEL SHARDS [--samples 64] [--batch-size 32] [--rounds 3]

MODEL: for example runs/quickstart; SHARDS: runs/quickstart-data/shards. Reading and cutting the pictures is part of it.
CPU seconds of the process are shown too, for machines that do other things meanwhile.
"""

import argparse
import time
from pathlib import Path

from tests.benchmarks.pairs import in_turns, print_table
from train.loading import load_run
from train.predict import positive, predict_split, quiet
from train.score.split import Split

WANTED = 3.0


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("shards", type=Path)
    parser.add_argument("--samples", type=positive, default=64)
    parser.add_argument("--batch-size", type=positive, default=32)
    parser.add_argument("--rounds", type=positive, default=3)
    options = parser.parse_args()
    quiet()
    loaded, split = load_run(options.model), Split(options.shards)
    count = min(options.samples, len(split))

    def answer(batch_size: int) -> list[str]:
        return [one.answer for one in predict_split(loaded, split, batch_size=batch_size, limit=count)]

    ways = {"one at a time": lambda: answer(1), f"batches of {options.batch_size}": lambda: answer(options.batch_size)}
    single, batched = (way() for way in ways.values())
    rows, ratios = [], {}
    for clock, timer in (("wall clock", time.perf_counter), ("CPU", time.process_time)):
        one, many = in_turns(ways, options.rounds, warm_up=0, clock=timer).values()
        ratios[clock] = many.times_faster_than(one)
        rates = [f"{count / timing.median_s:.1f}" for timing in (one, many)]
        rows.append((clock, *rates, f"{ratios[clock]:.2f}"))
    print_table(("by", "one at a time, a second", "batched, a second", "times"), rows)
    same = sum(a == b for a, b in zip(single, batched, strict=True))
    print(f"{same} of {count} answers are the same both ways")
    print(f"verdict: {'reached' if ratios['wall clock'] >= WANTED else 'missed'}, {WANTED:g} times are wanted")


if __name__ == "__main__":
    main()
