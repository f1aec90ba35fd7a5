"""How long a resume takes to its first batch's plan, and in how much memory; and what its caches cost.

    python -m tests.benchmarks.resume [--samples 10000000] [--folder FOLDER]

Processes open the same plan one after the other, the first with an empty cache. Seconds are wall-clock, imports taken
off; memory is the process's own pages (USS), less what it had after its imports.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.figures import Figure, command, of_rounds
from tests.factories.memory import Peak, own_bytes

EPOCH, SHARE, RANKS = 3, 0.93, 8
SECONDS, MEGABYTES = 5, 500


def resume(folder: Path) -> dict[str, float]:
    """Open the plan and deal the batch at 93 % of epoch 3 to one of eight ranks."""
    from tests.factories.plans import PUBLISHED
    from train.pipeline.opening import open_plan

    peak = Peak()
    peak.start()
    begun, cpu = time.perf_counter(), time.process_time()
    tokenizer = folder / "tokenizer.json"
    plan = open_plan(folder, "train", PUBLISHED, tokenizer_file=tokenizer, cache=folder / "cache")
    step = plan.steps_until(EPOCH) + int(SHARE * plan.steps_in(EPOCH))
    micro_steps = plan.deal(step, 0, RANKS)
    digest = plan.digest(step)
    seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    peak.ended.set()
    return {
        "seconds": seconds,
        "cpu_s": cpu,
        "peak_mb": (peak.most - peak.base) / 1e6,
        "then_mb": (own_bytes() - peak.base) / 1e6,
        "step": step,
        "micro_steps": len(micro_steps),
        "digest": int(digest[:8], 16),
    }


def resume_apart(folder: Path) -> dict[str, float]:
    """`resume` in a process of its own."""
    started = [sys.executable, "-m", "tests.benchmarks.resume", "--folder", str(folder), "--measure"]
    done = subprocess.run(started, capture_output=True, text=True, check=True, cwd=Path(__file__).resolve().parents[2])
    return json.loads(done.stdout.splitlines()[-1])


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = argparse.ArgumentParser(prog="python -m tests.benchmarks.resume", description=__doc__)
    arguments.add_argument("--samples", type=int, default=10_000_000)
    arguments.add_argument("--folder", type=Path, help="where the index is made or lies; none: a temporary folder")
    arguments.add_argument("--rounds", type=int, default=3, help="resumes with caches there (default: 3)")
    arguments.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    return arguments


def measure(options: argparse.Namespace) -> list[Figure]:
    """Seconds and memory of a resume, its caches there, beside the first one, which makes them."""
    from tests.benchmarks.pairs import print_table
    from tests.factories.large_index import large_index

    rows, found = [], []
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if not (folder / "manifest.json").is_file():
            large_index(folder, options.samples)
        for what in ("caches built", *["caches there"] * options.rounds):
            found.append(one := resume_apart(folder))
            holds = one["seconds"] < SECONDS and one["peak_mb"] < MEGABYTES
            rows.append(
                (
                    *(what, f"{options.samples:,}", f"{one['step']:,.0f}", f"{one['seconds']:.1f}"),
                    *(f"{one['cpu_s']:.1f}", f"{one['peak_mb']:.0f}", f"{one['then_mb']:.0f}"),
                    f"{options.samples / one['seconds']:,.0f}",
                    "-" if what == "caches built" else "holds" if holds else "falls short",
                )
            )
            print(rows[-1], flush=True)
    heads = ("resume", "samples", "step", "seconds", "CPU s", "own MB at most", "then", "samples/s")
    print_table((*heads, f"asked: {SECONDS} s, {MEGABYTES} MB"), rows)
    print(f"caches built: lengths of all samples, and the packs of {EPOCH + 1} epochs counted")
    figures: list[Figure] = []
    for field, unit, asked in (("seconds", "s", SECONDS), ("peak_mb", "MB", MEGABYTES)):
        first, *later = (one[field] for one in found)
        baseline = "caches built", [first] * len(later)
        name = f"resume in {options.samples:,} samples" + (": own memory" if unit == "MB" else "")
        figure = of_rounds(name, later, unit, higher_is_better=False, baseline=baseline)
        figures.append(figure.asking(f"below {asked} {unit}", max(later) < asked))
    return figures


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    options = parser().parse_args(arguments)
    if options.measure:
        print(json.dumps(resume(options.folder)))
        return 0
    return command(parser(), measure, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
