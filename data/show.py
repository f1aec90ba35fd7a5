"""python -m data.show: what is in a folder of shards, in the terminal or as one page of HTML."""

import sys
from pathlib import Path

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import os

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from data.facts import Shown, SplitFacts, rejected_rows, split_facts
from data.manifest import Manifest
from data.schema import UserError
from data.whole import write_whole

EXAMPLES_A_REASON = 2
PAGE_SAMPLES = 24  # of each split on the page


def show(folder: Path, samples: int, console: Console) -> None:
    """Print counts, sizes, values, the rejected by reason with examples, and the first samples of each split.

    Raises ManifestError, IndexFileError, ShardError.
    """
    manifest = Manifest.load(folder)
    splits = [split_facts(folder, split, manifest, samples, thumbnails=False) for split in manifest.shards]
    console.print(_splits(splits))
    console.print(f"question: {manifest.question}", f"answer: {manifest.answer_template}", sep="\n", markup=False)
    fields = ", ".join(f"{name} ({kind})" for name, kind in manifest.fields.items()) or "none"
    console.print(f"fields: {fields}; chat template: {manifest.chat_template['name']}", markup=False)
    console.print(f"leaks prevented: {manifest.leaks_prevented:,}; rejected: {sum(manifest.rejected.values()):,}")
    if manifest.rejected:
        console.print(_rejected(rejected_rows(folder, manifest, thumbnails=False), manifest.rejected))
    for split in splits:
        _values(split, console)
        for one in split.shown:
            console.rule(f"{split.name}: {one.key} ({one.heading})", align="left", style="dim")
            for message in one.messages:
                console.print(f"{message['role']}: {message['content']}", markup=False, highlight=False)


def write_page(folder: Path, page: Path, samples: int) -> None:
    """Write one HTML file of the same, with the pictures in it; it loads nothing and runs nothing.

    Raises ManifestError, IndexFileError, ShardError.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    manifest = Manifest.load(folder)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    text = environment.get_template("page.html.j2").render(
        title=f"{folder.resolve().name}: {sum(counts['samples'] for counts in manifest.counts.values()):,} samples",
        manifest=manifest,
        splits=[split_facts(folder, split, manifest, samples, thumbnails=True) for split in manifest.shards],
        rejected=rejected_rows(folder, manifest, thumbnails=True),
        spread=_spread,
    )
    write_whole(page, text.encode("utf-8", "replace"))


def _spread(values: list[float]) -> str:
    return " · ".join(f"{value:,.0f}" if value == round(value) or value >= 100 else f"{value:,.2f}" for value in values)


def _splits(splits: list[SplitFacts]) -> Table:
    table = Table("split", "samples", "groups", "pictures", "shards", "MB", "median picture", "text bytes", box=None)
    counted = any(split.text_tokens for split in splits)
    if counted:
        table.add_column("text tokens")
        table.add_column("label tokens")
    for split in splits:
        cells = [
            split.name,
            f"{split.samples:,}",
            f"{split.groups:,}",
            f"{split.pictures:,}",
            str(split.shards),
            f"{split.bytes / 1e6:,.1f}",
            f"{split.widths[1]:.0f}×{split.heights[1]:.0f}" if split.widths else "none",
            f"{split.text_bytes:,}",
        ]
        table.add_row(*cells, *([_spread(split.text_tokens), _spread(split.label_tokens)] if counted else []))
    return table


def _rejected(rows: dict[str, list[Shown]], counts: dict[str, int]) -> Table:
    table = Table("rejected", "rows", "for example", box=None)
    for reason, examples in rows.items():
        said = [one.heading[:120] for one in examples[:EXAMPLES_A_REASON]]
        table.add_row(reason, f"{counts.get(reason, 0):,}", escape("\n".join(said)))
    return table


def _values(split: SplitFacts, console: Console) -> None:
    """How categories and numbers are distributed."""
    for name, values in split.categories.items():
        common = ", ".join(f"{value} {count:,}" for value, count in values[:8])
        console.print(f"{split.name}: {name} of {split.looked:,} samples: {common}", markup=False)
    for name, numbers in split.numbers.items():
        console.print(f"{split.name}: {name}: {_spread(numbers)} (5 · 50 · 95 %)", markup=False)


def main(arguments: list[str] | None = None) -> int:
    """Show a folder from the command line. Returns the exit code: 0, or 2 for what the user can mend."""
    parser = argparse.ArgumentParser(prog="python -m data.show", description="Show what is in a folder of shards.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=int, metavar="N", help="samples of each split (default: 2; on a page: 24)")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with pictures in place of printing")
    values = parser.parse_args(arguments)
    try:
        if values.html:
            write_page(values.folder, values.html, PAGE_SAMPLES if values.samples is None else values.samples)
            print(f"{values.html}: {os.path.getsize(values.html) / 1e6:,.1f} MB")
        else:
            show(values.folder, 2 if values.samples is None else values.samples, Console())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
