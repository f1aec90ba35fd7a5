"""What a part of the catalogue still needs: pictures taken over, files to be checked, URLs to be asked for."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Any

import xxhash

from data.entries import Entry
from data.jobs import CheckJob
from data.ledger import PART_ROWS, Found, Ledger, Lost, Record
from data.locate import Inside, Local, Nowhere, Place, Remote, Stored, locate, without_bytes
from data.originals import unchanged
from data.schema import Rejected, Row


@dataclass(frozen=True, slots=True)
class Bring:
    """A file of an object store that has to be copied here and looked at."""

    url: str
    job: CheckJob


@dataclass(frozen=True, slots=True)
class Ask:
    """A URL that has to be asked for, unless what became of it earlier settles it."""

    url: str
    asked: int
    earlier: Found | Lost | None


# A tuple, as a union is made anew wherever it is asked about, which happens for every picture.
SETTLED = (Found, Lost)
Open = CheckJob | Bring | Ask  # a job alone: a file that is there and has to be looked at


@dataclass(slots=True)
class Pending:
    """A row; it is done once nothing but Found and Lost is left in `pictures`."""

    entry: Entry
    """Its pictures' bytes are not held any more."""
    pictures: list[Found | Lost | Open]
    left: int = field(init=False)
    """Pictures that are neither found nor lost yet."""

    def __post_init__(self) -> None:
        self.left = sum(not isinstance(one, SETTLED) for one in self.pictures)

    def settle(self, place: int, outcome: Found | Lost) -> bool:
        """Say what became of a picture; returns whether the row is done by that."""
        self.pictures[place] = outcome
        self.left -= 1
        return not self.left


@dataclass(slots=True)
class Part:
    """Some rows of the catalogue, and what the ledger says of them."""

    number: int
    rows: list[Pending]
    old: list[Record]
    """Records of an earlier run with the same settings, of these rows or of others in their place."""
    left: int = field(init=False)
    """Rows that are not counted yet."""
    done: asyncio.Event = field(init=False, default_factory=asyncio.Event)
    """Set once all are."""

    def __post_init__(self) -> None:
        self.left = len(self.rows)

    def count(self) -> None:
        """Count a row that is done."""
        self.left -= 1
        if not self.left:
            self.done.set()

    @property
    def asks(self) -> bool:
        """Whether any of its pictures is asked for."""
        return any(isinstance(one, Ask) for row in self.rows for one in row.pictures)

    @property
    def characters(self) -> int:
        """Of all texts in its rows."""
        values = (value for row in self.rows if isinstance(row.entry, Row) for value in row.entry.values.values())
        return sum(len(value) for value in values if isinstance(value, str))


class PartReader:
    """Reads the catalogue part by part; blocks, and holds the bytes of one row's pictures at a time."""

    def __init__(
        self,
        pictures_of: Callable[[dict[str, Any]], list[Any]],
        entries: Iterator[Entry],
        ledger: Ledger,
        image_root: str,
        incoming: Path,
    ) -> None:
        """`pictures_of`: what a row's values name as pictures; `incoming`: where pictures that the catalogue holds
        wait for their check."""
        self._pictures_of = pictures_of
        self._entries = entries
        self._ledger = ledger
        self._image_root = image_root
        self._incoming = incoming
        self._parts = count()
        self._names = count()

    def read(self, fingerprint: str) -> Part:
        """The next part; it has no rows at the end. Records written with another fingerprint are not taken over."""
        number = next(self._parts)
        old = self._ledger.read(number) if self._ledger.fingerprint(number) == fingerprint else []
        by_row = {record.row: record for record in old}
        rows = [self._pending(entry, by_row.get(entry.number)) for entry in islice(self._entries, PART_ROWS)]
        return Part(number, rows, old)

    def skip(self) -> int:
        """Pass over the next part, as another machine fetches it; returns its number of rows."""
        next(self._parts)
        return sum(1 for _ in islice(self._entries, PART_ROWS))

    def _pending(self, entry: Entry, old: Record | None) -> Pending:
        if isinstance(entry, Rejected):
            return Pending(entry, [])
        known: dict[int, Found | Lost] = {}
        if old:
            known = {one.asked: one for one in old.pictures} | {one.asked: one for one in old.lost}
        pictures = [self._picture(value, known) for value in self._pictures_of(entry.values)]
        values = {name: without_bytes(value) for name, value in entry.values.items()}
        return Pending(Row(number=entry.number, values=values), pictures)

    def _picture(self, value: Any, known: dict[int, Found | Lost]) -> Found | Lost | Open:
        where = locate(value, self._image_root)
        asked = _asked(where)
        earlier = known.get(asked)
        if isinstance(earlier, Found) and not unchanged(self._ledger.downloads, earlier):
            earlier = None
        if isinstance(where, Nowhere):
            name = value if isinstance(value, str) else ""
            return Lost(url=name[:500], reason=where.reason, detail=where.detail, asked=asked)
        if isinstance(where, Remote):
            return earlier if isinstance(earlier, Found) else Ask(where.url, asked, earlier)
        if isinstance(earlier, Found) or (earlier is not None and isinstance(where, Inside)):
            return earlier
        # A file here that failed is looked at each time, as somebody may have mended it.
        if isinstance(where, Local):
            return CheckJob(url=where.name, path=where.path, ours=False, asked=asked)
        path = self._incoming / f"inside-{next(self._names)}"
        job = CheckJob(url=where.name, path=str(path), ours=True, asked=asked)
        if isinstance(where, Stored):
            return Bring(where.url, job)
        path.write_bytes(where.data)
        return job


def _asked(where: Place) -> int:
    """What names the same picture in a later run: the URL, the path, or the bytes."""
    if isinstance(where, Inside):
        return xxhash.xxh3_64_intdigest(where.data)
    name = where.path if isinstance(where, Local) else where.detail if isinstance(where, Nowhere) else where.url
    return xxhash.xxh3_64_intdigest(name.encode("utf-8", "surrogatepass"))
