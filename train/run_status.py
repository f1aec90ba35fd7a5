"""Where a run stands: its job, its state, how far and how fast it is, the first error of its ranks.

    launch/status NAME        (or python -m train.run_status runs/NAME)

Reads the run's folder, and asks Slurm for the job where there is one. No torch.
"""

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from train.rank_log import error_lines, read_ends
from train.runs import RunFolder

USER_ERROR = 2
RECENT = 20  # steps that the rate is of


def job_line(number: str) -> str | None:
    """What Slurm says of a job; None where it knows nothing, or where there is no Slurm."""
    if shutil.which("squeue") is None:
        return None
    command = ["squeue", "-h", "-j", number, "-o", "%T on %N, %M of %l (%r)"]
    asked = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    text = asked.stdout.strip()
    return f"job {number}: {text}" if asked.returncode == 0 and text else f"job {number}: not in the queue"


def recent(run: RunFolder) -> list[dict[str, Any]]:
    """The last training lines of the metrics."""
    lines = run.metrics.read_text().splitlines() if run.metrics.is_file() else []
    records = [json.loads(line) for line in lines[-4 * RECENT :] if line.endswith("}")]
    return [record for record in records if record["kind"] == "train"][-RECENT:]


def rate_line(records: Sequence[dict[str, Any]], left: int) -> str:
    """Seconds a step, tokens a second, and what is left at that rate."""
    step_s = statistics.median(record["time"]["step_s"] for record in records)
    tokens = statistics.median(record["tokens"] / record["time"]["step_s"] for record in records)
    hours = left * step_s / 3600
    return f"{step_s:.2f} s a step, {tokens:,.0f} tokens/s; {left:,} steps left, {hours:.1f} h at that rate"


def status_lines(path: Path) -> list[str]:
    """All that can be said of a run."""
    run = RunFolder(path)
    status = run.status()
    said, held = run.holder()
    found = re.search(r"job (\d+)", said)
    lines = [line for line in [job_line(found[1]) if found else None] if line]
    if status:
        reason = f" ({status['reason']})" if status.get("reason") else ""
        # A job that failed before its first step has neither.
        far = f", step {status['step']:,} of {status['steps']:,}" if "step" in status else ""
        lines.append(f"{path}: {status['state']}{reason}{far}")
        if status["state"] == "running" and not held:
            lines.append(f"  nobody is at work on it ({said} is gone); the same command goes on with it")
        lines.append(f"newest whole checkpoint: {status.get('checkpoint') or 'none yet'}")
    records = recent(run)
    if records:
        age = time.time() - run.metrics.stat().st_mtime
        last = records[-1]
        lines.append(f"last step {last['step']:,}, {age:,.0f} s ago: loss {last['loss']:.4f}")
        lines.append(rate_line(records, max(0, int(status.get("steps", last["step"])) - last["step"])))
    return [*lines, *error_lines(read_ends(path), alive=held)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print where a run stands; returns the exit code."""
    parser = argparse.ArgumentParser(prog="launch/status", description="Say where a run stands.")
    parser.add_argument("run", help="name of a run, or its folder")
    options = parser.parse_args(arguments)
    path = Path(options.run)
    if not (path / "status.json").is_file() and not (path / "logs").is_dir():
        path = Path("runs") / options.run
    if not path.is_dir():
        there = ", ".join(sorted(one.parent.name for one in Path("runs").glob("*/status.json"))) or "none"
        print(f"error: {options.run}: there is no such run; under runs/ there are: {there}", file=sys.stderr)
        return USER_ERROR
    print("\n".join(status_lines(path)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
