"""The ledger: what became of every row's pictures, in Parquet parts of a fixed number of rows each."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data.schema import UserError
from data.whole import whole_file, write_whole

PART_ROWS = 500
_VERSION = "phi3v-ledger-2"
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
        ("format", pa.string()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
        ("phash", pa.uint64()),
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


class LedgerError(UserError):
    """A ledger that is not there, not finished, or of other rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A checked picture and where its bytes are."""

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
    host: str = ""
    """That was asked first; empty of a local file."""
    robots: str = ""
    """Verdict of the site, as in `data.download.Visit`."""
    asked: int = 0
    """Hash of what the row asked for: the URL, the path, or the bytes themselves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
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


_FOUND = [field.name for field in fields(Found)]
_LOST = [field.name for field in fields(Lost) if field.name != "reason"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
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
        rows = [_plain(record) for record in records]
        table = pa.Table.from_pylist(
            rows, schema=_SCHEMA.with_metadata({"fingerprint": fingerprint, "version": _VERSION})
        )
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
        return [_record(values) for values in self._table(part).to_pylist()]

    def take(self, rows: list[int]) -> Iterator[Record]:
        """The records of some rows, in the given (rising) order, reading a part at a time."""
        part, table = -1, None
        for row in rows:
            if row // PART_ROWS != part:
                part = row // PART_ROWS
                table = self._table(part)
            assert table is not None
            yield _record(table.slice(row % PART_ROWS, 1).to_pylist()[0])

    def _table(self, part: int) -> pa.Table:
        try:
            return pq.read_table(self.path(part))
        except (FileNotFoundError, pa.ArrowInvalid) as error:
            raise LedgerError(f"{self.path(part)}: not there or damaged; fetch again with --only fetch") from error

    def forget(self, record: Record) -> None:
        """Drop the part of a record whose pictures are not what it says, so that the next fetch looks at them anew."""
        for picture in record.pictures:
            if not Path(picture.place).is_absolute():
                (self.downloads / picture.place).unlink(missing_ok=True)
        self.path(record.row // PART_ROWS).unlink(missing_ok=True)
        self.reopen()

    def finish(self, summary: Summary) -> None:
        """Say that the ledger is complete, and remove parts of an earlier, longer catalogue."""
        for path in self.folder.glob("part-*.parquet"):
            if int(path.stem.removeprefix("part-")) >= summary.parts:
                path.unlink()
        write_whole(self._summary, json.dumps(asdict(summary), indent=2).encode() + b"\n")

    def reopen(self) -> None:
        """Say that the ledger is not complete any more."""
        self._summary.unlink(missing_ok=True)

    def summary(self) -> Summary | None:
        """The summary of a complete ledger, else None."""
        try:
            return Summary(**json.loads(self._summary.read_bytes()))
        except (FileNotFoundError, ValueError, TypeError):
            return None


def _plain(record: Record) -> dict[str, Any]:
    return {
        "row": record.row,
        "status": record.status,
        "stage": record.stage,
        "reason": record.reason,
        "detail": record.detail,
        "values": json.dumps(record.values),
        "pictures": [
            *({name: getattr(found, name) for name in _FOUND} | {"verdict": "ok"} for found in record.pictures),
            *({name: getattr(lost, name) for name in _LOST} | {"verdict": lost.reason} for lost in record.lost),
        ],
    }


def _record(values: dict[str, Any]) -> Record:
    return Record(
        row=values["row"],
        status=values["status"],
        stage=values["stage"],
        reason=values["reason"],
        detail=values["detail"],
        values=json.loads(values["values"]),
        pictures=tuple(
            Found(**{name: one[name] for name in _FOUND}) for one in values["pictures"] if one["verdict"] == "ok"
        ),
        lost=tuple(
            Lost(reason=one["verdict"], **{name: one[name] for name in _LOST})
            for one in values["pictures"]
            if one["verdict"] != "ok"
        ),
    )
