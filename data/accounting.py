"""Whether every row of a catalogue is in the shards or in rejected.jsonl, exactly once."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data.manifest import Manifest

_NAMED = 5  # rows of those that are missing


class Rows:
    """Ticks rows off, a byte of memory each; those of a manifest that says of how many rows it was built."""

    def __init__(self, manifest: Manifest) -> None:
        rows = manifest.build.get("rows")
        self.count = rows if isinstance(rows, int) else None
        """Of the catalogue; None if the manifest does not say, and then no row is ticked off."""
        self._seen = bytearray(self.count or 0)
        self._unread = 0

    def unread(self) -> None:
        """Say that a sample could not be read, hence one row is not known."""
        self._unread += 1

    def tick(self, number: Any) -> str | None:
        """Take a row that was found. Returns what is wrong with it, if anything."""
        if self.count is None:
            return None
        if not isinstance(number, int) or not 0 <= number < self.count:
            return f"is said to be row {number!r} of a catalogue of {self.count:,} rows"
        if self._seen[number]:
            return f"is row {number}, which stands elsewhere already"
        self._seen[number] = 1
        return None

    def missing(self) -> str | None:
        """Which rows were not found, once all were looked for."""
        gone = np.flatnonzero(np.frombuffer(self._seen, np.uint8) == 0)
        if len(gone) <= self._unread:
            return None
        named = ", ".join(map(str, gone[:_NAMED].tolist())) + (", …" if len(gone) > _NAMED else "")
        return f"{len(gone):,} rows are neither in a shard nor in rejected.jsonl: {named}"


def check_rejected(folder: Path, manifest: Manifest, rows: Rows) -> Iterator[str]:
    """Tick the rejected rows off, and count their reasons as the manifest does. Yields a line for whatever is wrong."""
    path, found = folder / "rejected.jsonl", Counter[str]()
    if not path.is_file():
        if manifest.rejected or rows.count is not None:
            yield f"{path}: missing"
        return
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                row, reason = record["row"], str(record["reason"])
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                yield f"{path}, line {number}: not the JSON of a rejected row ({error!r})"
                continue
            found[reason] += 1
            if wrong := rows.tick(row):
                yield f"{path}, line {number}: {wrong}"
    for reason in sorted(found.keys() | manifest.rejected.keys()):
        if found[reason] != manifest.rejected.get(reason, 0):
            told = manifest.rejected.get(reason, 0)
            yield f"{path}: {found[reason]:,} rows rejected as {reason}, the manifest says {told:,}"
