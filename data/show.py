"""python -m data.show: what is in a folder of shards, in the terminal."""

import sys
from pathlib import Path

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import json
from collections import Counter
from itertools import islice
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from data.index import Index
from data.manifest import Manifest
from data.schema import UserError
from data.shards import read_sample

EXAMPLES_A_REASON = 2


def show(folder: Path, samples: int, console: Console) -> None:
    """Print counts, splits, picture sizes, the rejected by reason with examples, and the first samples of each split.

    Raises ManifestError, IndexFileError, ShardError.
    """
    manifest = Manifest.load(folder)
    console.print(_splits(folder, manifest))
    console.print(f"question: {manifest.question}", f"answer: {manifest.answer_template}", sep="\n", markup=False)
    fields = ", ".join(f"{name} ({kind})" for name, kind in manifest.fields.items()) or "none"
    console.print(f"fields: {fields}; chat template: {manifest.chat_template['name']}", markup=False)
    console.print(f"leaks prevented: {manifest.leaks_prevented:,}; rejected: {sum(manifest.rejected.values()):,}")
    if manifest.rejected:
        console.print(_rejected(folder / "rejected.jsonl", manifest.rejected))
    for split in manifest.shards:
        _samples(folder, split, manifest, samples, console)


def _splits(folder: Path, manifest: Manifest) -> Table:
    table = Table("split", "samples", "groups", "pictures", "shards", "MB", "median picture", "text bytes", box=None)
    for split, counts in manifest.counts.items():
        index = Index.open(folder / split / "index.arrow")
        sizes = index.picture_sizes
        median = "×".join(str(int(side)) for side in np.median(sizes, axis=0)) if len(sizes) else "none"
        table.add_row(
            split,
            f"{counts['samples']:,}",
            f"{index.groups:,}",
            f"{counts['pictures']:,}",
            str(len(manifest.shards[split])),
            f"{counts['bytes'] / 1e6:,.1f}",
            median,
            f"{int(index.text_bytes.sum()):,}",
        )
    return table


def _rejected(path: Path, counts: dict[str, int]) -> Table:
    examples: dict[str, list[str]] = {reason: [] for reason in counts}
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            record: dict[str, Any] = json.loads(line)
            listed = examples.setdefault(record["reason"], [])
            if len(listed) < EXAMPLES_A_REASON:
                listed.append(f"row {record['row']}: {record['detail'][:100]}")
    table = Table("rejected", "rows", "for example", box=None)
    for reason, count in sorted(counts.items(), key=lambda one: -one[1]):
        table.add_row(reason, f"{count:,}", escape("\n".join(examples[reason])))
    return table


def _samples(folder: Path, split: str, manifest: Manifest, samples: int, console: Console) -> None:
    """The first samples of a split, and how its first category is distributed."""
    index = Index.open(folder / split / "index.arrow")
    paths = [folder / split / shard["name"] for shard in manifest.shards[split]]
    category = next((name for name, kind in manifest.fields.items() if kind == "category"), None)
    counted: Counter[str] = Counter()
    for number in islice(range(len(index)), max(samples, 1000 if category else 0)):
        entry = index.entry(number)
        sample, _ = read_sample(paths[entry.shard], entry)
        if category:
            counted[str(sample.target.get(category))] += 1
        if number < samples:
            sizes = ", ".join(f"{width}×{height}" for width, height in entry.image_sizes)
            console.rule(f"{split}: {sample.key} ({sizes})", align="left", style="dim")
            for message in sample.messages:
                console.print(f"{message['role']}: {message['content']}", markup=False, highlight=False)
    if counted:
        common = ", ".join(f"{name} {count:,}" for name, count in counted.most_common(8))
        console.print(f"{split}: {category} of the first {sum(counted.values()):,}: {common}", markup=False)


def main(arguments: list[str] | None = None) -> int:
    """Show a folder from the command line. Returns the exit code: 0, or 2 for what the user can mend."""
    parser = argparse.ArgumentParser(prog="python -m data.show", description="Show what is in a folder of shards.")
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--samples", type=int, default=2, metavar="N", help="samples to print of each split (default: 2)"
    )
    values = parser.parse_args(arguments)
    try:
        show(values.folder, values.samples, Console())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
