"""The rejected rows of a build: as they are found in a file, then as rejected.jsonl in the catalogue's order."""

from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np

from data.schema import Rejected


class RejectedRows:
    """Takes rows in any order; however many there are, few bytes of each stay in memory. Use as a context manager."""

    def __init__(self, path: Path) -> None:
        """Takes the path of the file in which they wait; it is gone after the block."""
        self._path = path
        self._numbers = array("q")
        self._ends = array("q", [0])
        self._reasons: Counter[str] = Counter()

    def __enter__(self) -> "RejectedRows":
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = self._path.open("w+b")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()
        self._path.unlink(missing_ok=True)

    def add(self, one: Rejected) -> None:
        """Take a row."""
        line = one.to_json()
        self._stream.write(line)
        self._numbers.append(one.number)
        self._ends.append(self._ends[-1] + len(line))
        self._reasons[one.reason] += 1

    @property
    def reasons(self) -> dict[str, int]:
        """Reason → rows, in alphabetical order."""
        return dict(sorted(self._reasons.items()))

    def lines(self) -> Iterator[bytes]:
        """The lines of rejected.jsonl in the order of the rows, newlines included."""
        for place in np.argsort(np.frombuffer(self._numbers, np.int64), kind="stable").tolist():
            self._stream.seek(self._ends[place])
            yield self._stream.read(self._ends[place + 1] - self._ends[place])
