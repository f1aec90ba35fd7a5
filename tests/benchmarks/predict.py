"""Predictions a second, batched against one at a time, on the same samples of a split.

    python -m tests.benchmarks.predict [MODEL SHARDS] [--samples 64] [--batch-size 32] [--rounds 3]

MODEL: for example runs/quickstart; SHARDS: runs/quickstart-data/shards. Those two are taken where none are named and
`make quickstart` was run here; else a model of random weights as large, which never stops by itself, on drawn
pictures. Reading and cutting the pictures is part of it. CPU seconds of the process are shown too, for machines that do
other things meanwhile.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from data.schema import UserError
from tests.benchmarks.figures import Figure, command, of_rounds
from tests.benchmarks.pairs import in_turns, print_table
from tests.conftest import ROOT
from tests.factories.small_shards import small_shards
from train.loading import Loaded, load_run
from train.model.tiny import PRESETS, make
from train.predict import positive, predict_split, quiet
from train.score.split import Split

WANTED = 3.0
QUICKSTART = ROOT / "runs" / "quickstart", ROOT / "runs" / "quickstart-data" / "shards"
MOST_TOKENS, MOST_TOKENS_AT_RANDOM = 96, 24


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    arguments.add_argument("model", nargs="?")
    arguments.add_argument("shards", nargs="?", type=Path)
    arguments.add_argument("--samples", type=positive, default=64)
    arguments.add_argument("--batch-size", type=positive, default=32)
    arguments.add_argument("--rounds", type=positive, default=3)
    return arguments


def opened(options: argparse.Namespace, scratch: Path) -> tuple[str, Loaded, Split, int]:
    """What is asked, in words; the model, the split, and the most tokens of an answer."""
    if options.model:
        return f"{options.model}", load_run(options.model), Split(options.shards), MOST_TOKENS
    try:
        return "quickstart's run", load_run(QUICKSTART[0]), Split(QUICKSTART[1]), MOST_TOKENS
    except (UserError, OSError):
        drawn = small_shards(scratch / "shards", shards=2, per_shard=64, splits=("train", "test"))
        make(scratch / "model", drawn.folder, PRESETS["quickstart"], seed=0)
        return "random model", load_run(scratch / "model"), Split(drawn.folder), MOST_TOKENS_AT_RANDOM


def measure(options: argparse.Namespace) -> list[Figure]:
    """Answers a second, batched, beside one at a time."""
    if options.model and not options.shards:
        raise UserError("name the shards behind the model")
    quiet()
    with tempfile.TemporaryDirectory() as scratch:
        what, loaded, split, most = opened(options, Path(scratch))
        count = min(options.samples, len(split))

        def answers(batch_size: int) -> list[str]:
            found = predict_split(loaded, split, batch_size=batch_size, max_new_tokens=most, limit=count)
            return [one.answer for one in found]

        ways = {
            "one at a time": lambda: answers(1),
            f"batches of {options.batch_size}": lambda: answers(options.batch_size),
        }
        single, batched = (way() for way in ways.values())
        rows, figures = [], []
        for clock, timer in (("wall clock", time.perf_counter), ("CPU", time.process_time)):
            one, many = in_turns(ways, options.rounds, warm_up=0, clock=timer).values()
            slow, fast = ([count / taken for taken in timing.seconds] for timing in (one, many))
            figure = of_rounds(
                f"{what}, batches of {options.batch_size}, by {clock}",
                fast,
                "answers/s",
                baseline=("one at a time", slow),
            )
            ratio = many.times_faster_than(one)
            figures.append(figure.asking(f"{WANTED:g}×", ratio >= WANTED) if clock == "wall clock" else figure)
            rates = [f"{count / timing.median_s:.1f}" for timing in (one, many)]
            rows.append((clock, *rates, f"{ratio:.2f}"))
    print_table(("by", "one at a time, a second", "batched, a second", "times"), rows)
    same = sum(a == b for a, b in zip(single, batched, strict=True))
    print(f"{what}: {same} of {count} answers are the same both ways")
    print(f"verdict: {'reached' if figures[0].holds else 'missed'}, {WANTED:g} times are wanted")
    return figures


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    return command(parser(), measure, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
