"""Files of JSON lines that a run appends to, a step after the other."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.whole import write_whole
from train.pipeline.events import say


def cut_lines(path: Path, step: int) -> list[dict[str, Any]]:
    """Leave in a file of JSON lines the whole ones up to a step, as when that step was saved; returns them."""
    if not path.is_file():
        return []
    kept, records = [], []
    for line in path.read_bytes().split(b"\n")[:-1]:
        try:
            record = json.loads(line)
        except ValueError:
            break
        if record["step"] > step:
            break
        kept.append(line + b"\n")
        records.append(record)
    write_whole(path, b"".join(kept))
    return records


class LineFile:
    """Appends lines. What the disk refuses is kept, told once, and tried again with each further line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pending = b""
        self._descriptor: int | None = None
        self._told = False

    def add(self, record: Mapping[str, Any]) -> None:
        """Append a record, or keep it."""
        self._pending += json.dumps(record, ensure_ascii=False).encode() + b"\n"
        try:
            if self._descriptor is None:
                self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            while self._pending:
                # A disk that fills up takes part of a line: the rest follows when there is room again.
                self._pending = self._pending[os.write(self._descriptor, self._pending) :]
        except OSError as error:
            if not self._told:
                say(f"warning: {self._path} cannot be written ({error.strerror}): its lines wait until it can")
            self._told = True
            return
        if self._told:
            say(f"{self._path} is written again, with all lines that waited")
        self._told = False

    def close(self) -> None:
        """Close the file; says how many lines it never took."""
        if self._descriptor is not None:
            os.close(self._descriptor)
        lines = self._pending.count(b"\n")
        if lines:
            say(f"warning: {self._path} lacks its last {lines} lines")
