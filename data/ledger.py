"""The ledger: what became of every row's pictures, in Parquet parts of a fixed number of rows each."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby, pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.parts import ALL
from data.parts import Part as Share
from data.schema import UserError
from data.whole import whole_file, write_whole

PART_ROWS = 500
_VERSION = "phi3v-ledger-5"
_PICTURE = pa.struct(
    [
        ("url", pa.string()),
        ("host", pa.string()),
        ("robots", pa.string()),
        ("attempts", pa.int32()),
        ("verdict", pa.string()),  # ok, or the class of failure
        ("detail", pa.string()),
        ("asked", pa.uint64()),
        ("place", pa.string()),
        ("offset", pa.int64()),
        ("format", pa.string()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
        ("phash", pa.uint64()),
        ("look", pa.binary()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("mtime_ns", pa.int64()),
    ]
)
_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("status", pa.string()),
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("values", pa.string()),
        ("pictures", pa.list_(_PICTURE)),
    ]
)


Likeness = bytes  # under another name, as a field below is called bytes


class LedgerError(UserError):
    """A ledger that is not there, not finished, or of other rows."""


class Found(NamedTuple):
    """A checked picture and where its bytes are.

    A tuple, as it goes from process to process and to the ledger and back: made and sent in a third of the time.
    """

    url: str
    """As the catalogue names it: a URL or a path."""
    place: str
    """Of the bytes: relative to downloads/, or a path of its own if they are read where they are."""
    format: str
    bytes: int
    sha256: str
    phash: int
    width: int
    height: int
    mtime_ns: int
    """Of a file read in place, to notice a change; 0 of a downloaded one."""
    attempts: int
    """Requests it took; 0 of a local file."""
    offset: int = 0
    """Where they begin in a volume (data/volumes.py); 0 of a file of its own."""
    host: str = ""
    """That was asked first; empty of a local file."""
    robots: str = ""
    """Verdict of the site, as in `data.download.Visit`."""
    asked: int = 0
    """Hash of what the row asked for: the URL, the path, or the bytes themselves."""
    look: Likeness = b""
    """A small likeness of it (data/looks.py)."""


class Lost(NamedTuple):
    """A picture that was not taken, and why."""

    url: str
    """As the catalogue names it: a URL or a path."""
    reason: str
    """The class of failure."""
    detail: str
    asked: int
    """As of `Found`."""
    host: str = ""
    robots: str = ""
    attempts: int = 0

    @property
    def by_download(self) -> bool:
        """Whether it was to come from a URL."""
        return is_url(self.url)


def is_url(name: str) -> bool:
    """Whether a picture's name is a URL that is fetched."""
    return name.lower().startswith(("http://", "https://"))


_PLACES: Callable[[tuple[Any, ...]], tuple[Any, ...]] = itemgetter(
    *(("verdict", "detail", *Found._fields).index(name) for name in _PICTURE.names)
)
_LOST = [name for name in Lost._fields if name != "reason"]
_PLAIN = ("row", "status", "stage", "reason", "detail")
_JSON = json.JSONDecoder()


class Record(NamedTuple):
    """One row of the ledger."""

    row: int
    status: str
    """ok | rejected"""
    stage: str
    reason: str
    detail: str
    values: dict[str, Any]
    """The row's values, pictures' bytes aside."""
    pictures: tuple[Found, ...]
    """In the order of the columns; of a rejected row those that were found."""
    lost: tuple[Lost, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a finished fetch says of itself."""

    rows: int
    parts: int
    fingerprint: str
    """Of the settings that decided what was fetched."""
    source: str
    columns: list[str]
    pictures: list[str]
    """The columns whose pictures were fetched."""
    urls: int = 0
    """Pictures that were to be downloaded."""
    failed: dict[str, int] = field(default_factory=dict)
    """Class of failure → URLs."""
    rows_failed: int = 0
    """Rows rejected because of a URL."""


class Ledger:
    """The ledger in a downloads folder."""

    def __init__(self, downloads: Path) -> None:
        self.downloads = downloads
        self.folder = downloads / "ledger"
        self._summary = self.folder / "summary.json"

    def path(self, part: int) -> Path:
        """The file of a part."""
        return self.folder / f"part-{part:06d}.parquet"

    def write(self, part: int, records: Iterable[Record], fingerprint: str) -> None:
        """Write a part, whole or not at all; `fingerprint` is of the settings it came from."""
        table = _table_of(list(records)).replace_schema_metadata({"fingerprint": fingerprint, "version": _VERSION})
        with whole_file(self.path(part)) as stream:
            pq.write_table(table, stream, compression="zstd")

    def fingerprint(self, part: int) -> str | None:
        """The fingerprint a part was written with; None if it is not there or cannot be read."""
        try:
            metadata = pq.read_schema(self.path(part)).metadata or {}
        except (FileNotFoundError, pa.ArrowInvalid):
            return None
        return metadata.get(b"fingerprint", b"").decode() if metadata.get(b"version") == _VERSION.encode() else None

    def read(self, part: int) -> list[Record]:
        """The records of a part, in the order of their rows. Raises LedgerError if it is not there."""
        return _records(self._table(part))

    def take(self, rows: list[int]) -> Iterator[Record]:
        """The records of some rows, in the given (rising) order, reading a part at a time."""
        for part, of_part in groupby(rows, lambda row: row // PART_ROWS):
            places = [row % PART_ROWS for row in of_part]
            yield from _records(self._table(part).take(places))

    def _table(self, part: int) -> pa.Table:
        try:
            with pq.ParquetFile(self.path(part)) as file:  # `read_table` would import what partitioned data sets need
                return file.read(use_threads=False)
        except (FileNotFoundError, pa.ArrowInvalid) as error:
            raise LedgerError(f"{self.path(part)}: not there or damaged; fetch again with --only fetch") from error

    def forget(self, row: int) -> None:
        """Drop the part of a row, so that the next fetch looks at its pictures anew."""
        self.path(row // PART_ROWS).unlink(missing_ok=True)
        self.reopen()

    def finish(self, summary: Summary) -> None:
        """Say that the ledger is complete, and remove parts of an earlier, longer catalogue."""
        for path in self.folder.glob("part-*.parquet"):
            if int(path.stem.removeprefix("part-")) >= summary.parts:
                path.unlink()
        write_whole(self._summary, json.dumps(asdict(summary), indent=2).encode() + b"\n")

    def finish_share(self, share: Share, summary: Summary) -> None:
        """Say that one of several machines has done all of its parts; `summary` counts rows and parts of all."""
        for path in self.folder.glob("share-*.json"):
            if not path.stem.endswith(f"-of-{share.of}"):
                path.unlink()  # of an earlier fetch by another number of machines
        write_whole(self._share(share), json.dumps(asdict(summary), indent=2).encode() + b"\n")

    def _share(self, share: Share) -> Path:
        return self.folder / f"share-{share.name}.json"

    def join(self) -> None:
        """Complete the ledger from the shares of all machines, if it was fetched in shares.

        Raises LedgerError if a share is missing, or if they are not of the same catalogue and settings.
        """
        found = {path.stem.removeprefix("share-"): path for path in self.folder.glob("share-*.json")}
        if not found or self.summary() is not None:
            return
        of = max(int(name.rpartition("-")[2]) for name in found)
        wanted = [Share(number, of) for number in range(1, of + 1)]
        missing = [share for share in wanted if share.name not in found]
        if missing:
            names = ", ".join(f"--part {share.number}/{of}" for share in missing)
            raise LedgerError(f"{self.folder}: not all shares are fetched; run {names}, then --join again")
        shares = [Summary(**json.loads(found[share.name].read_bytes())) for share in wanted]
        same = {json.dumps([one.rows, one.parts, one.fingerprint, one.source, one.columns]) for one in shares}
        if len(same) > 1:
            raise LedgerError(f"{self.folder}: the shares are of different catalogues or settings; fetch them again")
        failed: Counter[str] = Counter()
        for one in shares:
            failed.update(one.failed)
        self.finish(
            replace(
                shares[0],
                urls=sum(one.urls for one in shares),
                failed=dict(sorted(failed.items())),
                rows_failed=sum(one.rows_failed for one in shares),
            )
        )

    def reopen(self, share: Share = ALL) -> None:
        """Say that the ledger is not complete any more."""
        self._summary.unlink(missing_ok=True)
        self._share(share).unlink(missing_ok=True)

    def summary(self) -> Summary | None:
        """The summary of a complete ledger, else None."""
        try:
            return Summary(**json.loads(self._summary.read_bytes()))
        except (FileNotFoundError, ValueError, TypeError):
            return None


def _table_of(records: list[Record]) -> pa.Table:
    """Records as a table. Built column by column, as is what `_records` does: several times quicker than by rows."""
    found: list[list[Found | Lost]] = [[*record.pictures, *record.lost] for record in records]
    ends = np.cumsum([0, *map(len, found)])
    flat = [_in_order(one) for of_record in found for one in of_record]
    of_fields = list(zip(*flat, strict=True)) or [()] * len(_PICTURE)
    columns = [pa.array(of_field, field_.type) for field_, of_field in zip(_PICTURE, of_fields, strict=True)]
    pictures = pa.ListArray.from_arrays(
        pa.array(ends, pa.int32()), pa.StructArray.from_arrays(columns, fields=list(_PICTURE))
    )
    plain = [pa.array([getattr(one, name) for one in records], _SCHEMA.field(name).type) for name in _PLAIN]
    values = pa.array([json.dumps(one.values) for one in records], pa.string())
    return pa.table([*plain, values, pictures], schema=_SCHEMA)


def _in_order(one: Found | Lost) -> tuple[Any, ...]:
    """The values of _PICTURE; what only the one has is missing of the other."""
    if isinstance(one, Found):
        return _PLACES(("ok", None, *one))
    return _PLACES((one.reason, one.detail, *(getattr(one, name, None) for name in Found._fields)))


def _records(table: pa.Table) -> list[Record]:
    plain = [table[name].to_pylist() for name in (*_PLAIN, "values")]
    listed = table["pictures"].combine_chunks()
    flat = listed.flatten()
    columns = {name: flat.field(name).to_pylist() for name in _PICTURE.names}
    of_found, of_lost = (zip(*(columns[name] for name in names), strict=True) for names in (Found._fields, _LOST))
    pictures = [
        Found._make(found) if verdict == "ok" else Lost(reason=verdict, **dict(zip(_LOST, lost, strict=True)))
        for verdict, found, lost in zip(columns["verdict"], of_found, of_lost, strict=True)
    ]
    ends = np.cumsum([0, *listed.value_lengths().to_pylist()]).tolist()
    return [
        Record(row, status, stage, reason, detail, _JSON.raw_decode(values)[0], *_found_and_lost(pictures[first:last]))
        for (row, status, stage, reason, detail, values), (first, last) in zip(
            zip(*plain, strict=True), pairwise(ends), strict=True
        )
    ]


def _found_and_lost(pictures: list[Found | Lost]) -> tuple[tuple[Found, ...], tuple[Lost, ...]]:
    lost = tuple(one for one in pictures if isinstance(one, Lost))
    found = tuple(one for one in pictures if isinstance(one, Found)) if lost else tuple(pictures)
    return found, lost  # type: ignore[return-value]
