"""How long a resume takes to its first batch's plan, and in how much memory; and what its caches cost.

    python -m tests.benchmarks.resume [--samples 10000000] [--folder FOLDER]

Two processes open the same plan, the first with an empty cache. Seconds are wall-clock, imports taken off; memory is
the process's own pages (USS), less what it had after its imports.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

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


def measure(folder: Path) -> dict[str, float]:
    """`resume` in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.resume", "--folder", str(folder), "--measure"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).resolve().parents[2])
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path, help="where the index is made or lies; none: a temporary folder")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(resume(options.folder)))
        return
    from tests.benchmarks.pairs import print_table
    from tests.factories.large_index import large_index

    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if not (folder / "manifest.json").is_file():
            large_index(folder, options.samples)
        rows = []
        for what in ("caches built", "caches there"):
            found = measure(folder)
            holds = found["seconds"] < SECONDS and found["peak_mb"] < MEGABYTES
            rows.append(
                (
                    *(what, f"{options.samples:,}", f"{found['step']:,.0f}", f"{found['seconds']:.1f}"),
                    *(f"{found['cpu_s']:.1f}", f"{found['peak_mb']:.0f}", f"{found['then_mb']:.0f}"),
                    f"{options.samples / found['seconds']:,.0f}",
                    "-" if what == "caches built" else "holds" if holds else "falls short",
                )
            )
            print(rows[-1], flush=True)
        heads = ("resume", "samples", "step", "seconds", "CPU s", "own MB at most", "then", "samples/s")
        print_table((*heads, f"asked: {SECONDS} s, {MEGABYTES} MB"), rows)
        print(f"caches built: lengths of all samples, and the packs of {EPOCH + 1} epochs counted")


if __name__ == "__main__":
    main()
