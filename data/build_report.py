"""How it is said to a person what a build did."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from data.failures import counted
from data.outcome import Outcome
from data.parts import ALL, Part


def report(outcome: Outcome, seconds: float, output: Path | str, part: Part = ALL) -> None:
    """Print what a build did, for a person."""
    console = Console()
    plan, manifest = outcome.plan, outcome.manifest
    if not part.whole:
        did = "its rows are fetched" if plan is None else f"{outcome.shards_written} shards written"
        console.print(f"share {part.number} of {part.of}: {did} in {seconds:.1f} s; once all are done: --join")
        return
    if plan is None:
        assert outcome.fetched is not None
        failed = outcome.fetched.failed
        lost = f"; {failed.total():,} of {outcome.fetched.urls:,} URLs failed: {counted(failed)}" if failed else ""
        console.print(
            f"fetched {outcome.fetched.rows:,} rows in {seconds:.1f} s{lost}; next: the same command with --only split"
        )
        return
    table = Table("", "rows", "shards", "MB", box=None)
    for split, one in plan.splits.items():
        megabytes = f"{manifest.counts[split]['bytes'] / 1e6:,.1f}" if manifest else ""
        table.add_row(f"kept: {split}", f"{len(one.rows):,}", str(len(one.shards)), megabytes)
    for reason, count in plan.rejected.items():
        table.add_row(f"rejected: {reason}", f"{count:,}", "", "")
    table.add_row("all", f"{plan.rows:,}", str(sum(len(one.shards) for one in plan.splits.values())), "")
    console.print(table)
    if plan.leaks_prevented:
        console.print(f"{plan.leaks_prevented:,} rows moved to their group's split (leaks prevented)")
    if plan.straddling:
        console.print(
            f"warning: {plan.straddling:,} rows share a product or a picture with rows of another split; "
            "the catalogue's own split column decides"
        )
    if manifest is None:
        console.print(f"planned in {seconds:.1f} s; next: the same command with --only write")
    elif outcome.changed:
        console.print(
            f"{output} is whole: {outcome.shards_written} shards written in {seconds:.1f} s, "
            f"{plan.rows / seconds:,.0f} rows/s"
        )
    else:
        console.print(f"nothing to do: {output} is whole already")
