"""What every source yields: a catalogue's rows in a fixed order, with values that JSON can hold."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from data.schema import Rejected, Row, UserError

MAX_CELL = 1_000_000  # characters; what is longer is no product's text
MAX_DEPTH = 32  # of lists and objects within each other
Entry = Row | Rejected


class SourceError(UserError):
    """A catalogue that is not there or cannot be read as one."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """What stands in a row's place when it cannot be read."""

    reason: str
    """The class it is counted under: bad-row | bad-text | too-long."""
    detail: str


Values = dict[str, Any] | Unreadable


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A catalogue."""

    name: str
    """As it is recorded: a file's name without its folder, or hf:NAME@REV."""
    columns: tuple[str, ...]
    picture_root: str
    """Folder or URL where relative picture paths start unless told otherwise."""
    entries: Callable[[], Iterator[Entry]]
    """A new pass over the rows; a row that cannot be read is a Rejected in its place."""
    expected_rows: Callable[[], int | None] = lambda: None
    """About how many rows there are, by what the pass under way has read; None where that cannot be told."""


def number_rows(rows: Iterable[Values]) -> Iterator[Entry]:
    """Rows with their place in the catalogue, and with values that JSON can hold."""
    for number, values in enumerate(rows):
        if not values:
            values = Unreadable("bad-row", "a row without any column")
        if isinstance(values, dict):
            try:
                plain = {str(name): plain_value(value) for name, value in values.items()}
            except _NotPlain as error:
                values = Unreadable(error.reason, f"column {error.column(values)}: {error.detail}")
            else:
                yield Row(number=number, values=plain)
                continue
        yield Rejected(number=number, key=None, stage="read", reason=values.reason, detail=values.detail)


class _NotPlain(Exception):
    """A value that no row may hold."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def column(self, values: dict[str, Any]) -> str:
        """The first column that holds such a value, quoted."""
        for name, value in values.items():
            try:
                plain_value(value)
            except _NotPlain:
                return repr(name)
        return "?"


def plain_value(value: Any, depth: int = 0) -> Any:
    """A value as JSON can hold it: dates and decimals as text, NaN and infinities as None; bytes stay (a picture's)."""
    if isinstance(value, str):
        if len(value) > MAX_CELL:
            raise _NotPlain("too-long", f"{len(value):,} characters")
        if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise _NotPlain("bad-text", "not UTF-8 (--encoding names another)")
        return value
    if value is None or isinstance(value, bool | int | bytes):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict | list | tuple):
        if depth == MAX_DEPTH:
            raise _NotPlain("bad-row", f"lists within lists, more than {MAX_DEPTH} deep")
        if isinstance(value, dict):
            return {str(name): plain_value(one, depth + 1) for name, one in value.items()}
        return [plain_value(one, depth + 1) for one in value]
    return str(value)
