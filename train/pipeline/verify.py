"""Was a run trained on what its plan says? Recomputes the plan and holds it against each step's line in the metrics."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from data.schema import UserError
from train.pipeline.opening import open_again
from train.pipeline.plan import Plan

DIGEST_LETTERS = 16
"""Of a step's SHA-256 that stand in the metrics: 64 bits."""


def step_digest(plan: Plan, step: int) -> str:
    """What the metrics say of the keys planned for global step `step` (from 0)."""
    return plan.digest(step)[:DIGEST_LETTERS]


def verify(run: Path) -> tuple[int, int | None]:
    """Recompute the planned keys of each step of a run.

    Returns the steps looked at, and the first (from 1, as in the metrics) that was trained on other keys, or None.
    Raises UserError for a folder without plan.json or metrics, and where shards or tokenizer are not there any more.
    """
    record, metrics = run / "plan.json", run / "metrics.jsonl"
    for file in (record, metrics):
        if not file.is_file():
            raise UserError(f"{file} is not there: {run} is not the folder of a run that was trained")
    plan = open_again(json.loads(record.read_text()), record)
    looked_at = 0
    with metrics.open() as lines:
        for line in lines:
            values = json.loads(line)
            if values["kind"] != "train":
                continue
            looked_at += 1
            if values["keys"] != step_digest(plan, values["step"] - 1):
                return looked_at, values["step"]
    return looked_at, None


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns 0 where all steps are as planned, 1 where one is not, 2 for what a person can mend."""
    parser = argparse.ArgumentParser(prog="python -m train.pipeline.plan")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("verify", help="recompute the keys of each step of a run")
    command.add_argument("run", type=Path, help="folder of the run")
    options = parser.parse_args(arguments)
    try:
        steps, first = verify(options.run)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if first is not None:
        print(f"{options.run}: step {first} was trained on other samples than planned")
        return 1
    print(f"{options.run}: {steps:,} steps, all trained on the samples that the plan says")
    return 0
