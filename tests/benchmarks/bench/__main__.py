"""All benchmarks that this machine can run, one after the other: what `make bench` runs.

    python -m tests.benchmarks.bench [--full] [--only NAME …] [--output DIR] [--compare EARLIER.json] [--list]

Writes benchmarks.json, benchmarks.md and benchmarks.svg, prints the tables, and compares with an earlier file: by
default the benchmarks.json that lay there before. The quick size takes about ten minutes on two cores. Exit codes: 0
all ended well, or could not run here and say why; 1 one of them failed; 2 something the user can mend.
"""

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from data.schema import UserError
from data.whole import write_whole
from tests.benchmarks.bench.compare import compare
from tests.benchmarks.bench.machine import ROOT, commit, machine, versions
from tests.benchmarks.bench.plots import svg
from tests.benchmarks.bench.runs import Benchmark, Outcome, Record, run_alone
from tests.benchmarks.bench.tables import comparison_lines, outcome_lines, record_lines, summary

BENCHMARKS = (
    Benchmark(
        name="preprocess",
        says="what a picture costs a worker, beside the published processor's steps",
        quick=("--pictures", "6", "--rounds", "5"),
        material=True,
    ),
    Benchmark(
        name="loader",
        says="samples a second ready for the device, beside webdataset",
        quick=("--seconds", "3", "--sizes", "0"),
        material=True,
    ),
    Benchmark(
        name="packing",
        says="how full packs are, and how evenly ranks are loaded",
        quick=("--crops", "4", "16", "--samples", "30000"),
        material=True,
    ),
    Benchmark(
        name="forward",
        says="forward and backward of a small model on one core, beside the published way",
        quick=("--pictures", "4"),
        material=True,
    ),
    Benchmark(name="bound", says="what a step at full size can reach on a GPU at most, by its kernels; needs none"),
    Benchmark(
        name="gpu",
        says="training at full size on a GPU, beside the published way and its matrix rate",
        quick=("--tokens", "4096", "16384", "--seconds", "3"),
    ),
    Benchmark(
        name="feeding",
        says="training on a GPU from shards, how long it waits for data, and how many cores feed it",
        quick=("--crops", "16", "--seconds", "5"),
        material=True,
    ),
    Benchmark(name="loss", says="memory and time of the loss at the head"),
    Benchmark(
        name="trainer",
        says="the training loop beside the engine's bare calls, and what a save holds up",
        quick=("--pairs", "3", "--steps", "2", "--saves", "3"),
    ),
    Benchmark(
        name="predict",
        says="predictions a second, batched against one at a time",
        quick=("--samples", "32"),
    ),
    Benchmark(name="resume", says="how long a resume takes to its first batch", quick=("--samples", "1000000")),
    Benchmark(
        name="shards",
        says="pictures a second from files to shards, beside the bare decoder",
        quick=("--pictures", "6000"),
        material=True,
    ),
    Benchmark(
        name="download",
        says="pictures a second from a web server to shards, beside img2dataset",
        quick=("--times", "2"),
        always=("--no-install",),
        material=True,
    ),
)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    known = [benchmark.name for benchmark in BENCHMARKS]
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.bench", description="Run the benchmarks that this machine can run."
    )
    parser.add_argument("--full", action="store_true", help="at full size; may take more than an hour")
    parser.add_argument("--only", nargs="+", choices=known, metavar="NAME", help=f"of {', '.join(known)}")
    parser.add_argument("--list", action="store_true", help="say what there is, and run nothing")
    parser.add_argument("--output", type=Path, default=ROOT, metavar="DIR", help="for the files (default: the root)")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="an earlier benchmarks.json")
    parser.add_argument("--material", type=Path, metavar="DIR", help="folder that holds clothing/ and phi3v/")
    parser.add_argument(
        "--timeout", type=float, metavar="SECONDS", help="of each benchmark (default: 600, at full size 7200)"
    )
    return parser.parse_args(arguments)


def arguments_of(benchmark: Benchmark, options: argparse.Namespace) -> tuple[str, ...]:
    """What a benchmark is called with."""
    material = ("--material", str(options.material.resolve())) if benchmark.material and options.material else ()
    return (*benchmark.always, *(() if options.full else benchmark.quick), *material)


def run_all(options: argparse.Namespace, benchmarks: Sequence[Benchmark], package: str) -> Record:
    """Run them in turn; says where it is."""
    begun, start = datetime.now(UTC), time.perf_counter()
    timeout_s = options.timeout or (7200 if options.full else 600)
    outcomes: list[Outcome] = []
    for place, benchmark in enumerate(benchmarks, 1):
        print(f"── {benchmark.name} ({place} of {len(benchmarks)}): {benchmark.says}", flush=True)
        outcome = run_alone(benchmark.name, arguments_of(benchmark, options), timeout_s=timeout_s, package=package)
        outcomes.append(outcome)
        print("\n".join(outcome_lines(outcome)), flush=True)
    return Record(
        begun=begun.isoformat(timespec="seconds"),
        seconds=round(time.perf_counter() - start, 1),
        size="full" if options.full else "quick",
        machine=machine(),
        versions=versions(),
        commit=commit(),
        benchmarks=tuple(outcomes),
    )


def report(record: Record, stem: Path, earlier: Record | None, earlier_name: str) -> None:
    """Write the three files, and print what changed."""
    lines = [*record_lines(record), "", f"![Ratios and shares]({stem.name}.svg)"]
    if earlier:
        changed = comparison_lines(compare(earlier, record), earlier_name)
        lines += ["", *changed]
        print("\n".join(["", *changed]))
    write_whole(stem.with_name(f"{stem.name}.svg"), svg(record).encode())
    write_whole(stem.with_name(f"{stem.name}.md"), "\n".join([*lines, ""]).encode())
    record.save(stem.with_name(f"{stem.name}.json"))
    print(f"\n{summary(record.benchmarks)}, in {record.seconds / 60:.1f} minutes")
    print(f"{stem}.json, .md and .svg are written")


def bench(options: argparse.Namespace, benchmarks: Sequence[Benchmark], package: str = "tests.benchmarks") -> int:
    """Run, write, compare. Returns the exit code; raises UserError for an earlier file that is none."""
    chosen = [one for one in benchmarks if not options.only or one.name in options.only]
    if options.list:
        print("\n".join(f"{one.name:12} {one.says}; quick: {' '.join(one.quick) or 'as it is'}" for one in chosen))
        return 0
    # Some of them alone do not take the place of a whole record.
    stem = options.output.resolve() / "-".join(("benchmarks", *(options.only or ())))
    last = stem.with_name(f"{stem.name}.json")
    against = options.compare or (last if last.is_file() else None)
    earlier = Record.load(against) if against else None
    record = run_all(options, chosen, package)
    report(record, stem, earlier, f"{against.name} of {earlier.begun}" if against and earlier else "")
    return int(any(outcome.state == "failed" for outcome in record.benchmarks))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    options = parse(arguments)
    # Not ended on the spot, but by an exception, which ends the benchmark that is running too.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        return bench(options, BENCHMARKS)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
