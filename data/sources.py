"""Where rows come from: each source a stream of rows in a fixed order, so that a row's number is its position."""

import csv
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.schema import Rejected, Row, UserError

MAX_CELL = 1_000_000  # characters; what is longer is no product's text
METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.tsv", "metadata.parquet")
Entry = Row | Rejected


class SourceError(UserError):
    """A catalogue that is not there or cannot be read as one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A catalogue."""

    name: str
    """As it is recorded: a file's name without its folder, or hf:NAME@REV."""
    columns: tuple[str, ...]
    picture_root: Path
    """Where relative picture paths start unless told otherwise."""
    entries: Callable[[], Iterator[Entry]]
    """A new pass over the rows; a row that cannot be read is a Rejected in its place."""


def open_source(where: str) -> Source:
    """Open a catalogue: a .csv, .tsv, .jsonl or .parquet file, a folder with a metadata file, or hf:NAME[@REVISION].

    Raises SourceError if it is not there, not one of these, or has no columns.
    """
    if where.startswith("hf:"):
        return _hub(where)
    path = Path(where)
    if path.is_dir():
        found = [path / name for name in METADATA_FILES if (path / name).is_file()]
        if not found:
            raise SourceError(
                f"{path} is a folder without a metadata file; put one of {', '.join(METADATA_FILES)} into it, with the "
                "column file_name naming the pictures, or name the catalogue's file itself"
            )
        path = found[0]
    if not path.is_file():
        beside = sorted(one.name for one in path.parent.iterdir())[:8] if path.parent.is_dir() else []
        hint = (
            f"; in {path.parent} there are {', '.join(beside)}"
            if beside
            else f"; there is no folder {path.parent} either"
        )
        raise SourceError(f"{path}: there is no such catalogue{hint}")
    openers = {".csv": _csv, ".tsv": _csv, ".jsonl": _jsonl, ".ndjson": _jsonl, ".parquet": _parquet}
    opener = openers.get(path.suffix.lower())
    if opener is None:
        raise SourceError(
            f"{path}: a catalogue ends in {', '.join(openers)}; convert it, or rename it if it is one of these"
        )
    columns, entries = opener(path)
    return Source(name=path.name, columns=tuple(columns), picture_root=path.parent, entries=entries)


Opened = tuple[list[str], Callable[[], Iterator[Entry]]]


def _csv(path: Path) -> Opened:
    with path.open("rb") as stream:
        start = stream.read(4)
    encoding = "utf-16" if start.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    csv.field_size_limit(16 * MAX_CELL)

    def records() -> Iterator[list[str]]:
        # surrogateescape: one bad byte costs its row, not the catalogue.
        with path.open(encoding=encoding, errors="surrogateescape", newline="") as lines:
            reader = csv.reader(lines, delimiter=_delimiter(path, encoding))
            try:
                yield from (record for record in reader if record)
            except (csv.Error, UnicodeError) as error:
                raise SourceError(f"{path}, line {reader.line_num}: {error}; mend that line, or remove it") from error

    columns = next(records(), None)
    if columns is None:
        raise SourceError(f"{path} is empty: a catalogue starts with a line of column names")
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise SourceError(
            f"{path}: the column name(s) {', '.join(map(repr, twice))} stand there twice; rename one of each"
        )

    def entries() -> Iterator[Entry]:
        stream = records()
        next(stream)
        for number, record in enumerate(stream):
            if len(record) != len(columns):
                yield _bad_row(number, f"{len(record)} cells under {len(columns)} column names")
            else:
                yield _entry(number, dict(zip(columns, record, strict=True)))

    return columns, entries


def _delimiter(path: Path, encoding: str) -> str:
    if path.suffix.lower() == ".tsv":
        return "\t"
    with path.open(encoding=encoding, errors="surrogateescape") as lines:
        header = lines.readline(MAX_CELL)
    return ";" if ";" in header and "," not in header else ","


def _jsonl(path: Path) -> Opened:
    def entries() -> Iterator[Entry]:
        with path.open("rb") as lines:
            number = 0
            for line in lines:
                if not line.strip():
                    continue
                try:
                    values = json.loads(line.decode("utf-8-sig"))
                except (ValueError, RecursionError) as error:
                    yield _bad_row(number, f"not JSON: {error}")
                else:
                    if isinstance(values, dict):
                        yield _entry(number, values)
                    else:
                        yield _bad_row(number, f"a JSON {type(values).__name__}, not an object")
                number += 1

    first = next((entry for entry in entries() if isinstance(entry, Row)), None)
    if first is None:
        raise SourceError(f"{path} is empty: none of its lines is a JSON object")
    return list(first.values), entries


def _parquet(path: Path) -> Opened:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        columns = pq.read_schema(path).names
    except (pa.ArrowInvalid, OSError) as error:
        raise SourceError(f"{path} is not a Parquet file: {error}") from error

    def entries() -> Iterator[Entry]:
        number = 0
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                for values in batch.to_pylist():
                    yield _entry(number, values)
                    number += 1

    return columns, entries


def _hub(where: str) -> Source:
    """A data set of the Hugging Face hub, of a local cache or folder; all its splits one after the other, and each row
    with the column `split` unless it has one."""
    import datasets

    name, _, revision = where.removeprefix("hf:").partition("@")
    try:
        splits = datasets.load_dataset(name, revision=revision or None)
    except Exception as error:  # the library raises a dozen classes for "not found", "no access" and "no network"
        raise SourceError(
            f"{where}: datasets cannot load it ({type(error).__name__}: {error}); check the name and the network "
            "(HF_HUB_OFFLINE must not be set unless it is in the local cache), or download it and name the file"
        ) from error
    undecoded = {}
    for split, rows in splits.items():
        for column, feature in rows.features.items():
            if isinstance(feature, datasets.Image):
                rows = rows.cast_column(column, datasets.Image(decode=False))
        undecoded[split] = rows
    columns = list(dict.fromkeys(column for rows in undecoded.values() for column in rows.column_names))

    def entries() -> Iterator[Entry]:
        number = 0
        for split, rows in undecoded.items():
            for values in rows:
                yield _entry(number, {"split": split} | values)
                number += 1

    return Source(
        name=where, columns=tuple(dict.fromkeys([*columns, "split"])), picture_root=Path.cwd(), entries=entries
    )


def _entry(number: int, values: dict[str, Any]) -> Entry:
    """A row with values that JSON can hold, pictures' bytes aside."""
    plain = {str(name): plain_value(value) for name, value in values.items()}
    for name, value in plain.items():
        if isinstance(value, str):
            if len(value) > MAX_CELL:
                return Rejected(
                    number=number,
                    key=None,
                    stage="read",
                    reason="too-long",
                    detail=f"column {name!r}: {len(value):,} characters",
                )
            if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
                return Rejected(
                    number=number, key=None, stage="read", reason="bad-text", detail=f"column {name!r} is not Unicode"
                )
    return Row(number=number, values=plain)


def plain_value(value: Any) -> Any:
    """A value as JSON can hold it: dates and decimals as text, NaN and infinities as None; bytes stay (a picture's)."""
    if value is None or isinstance(value, str | bool | int | bytes):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): plain_value(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain_value(one) for one in value]
    return str(value)


def _bad_row(number: int, detail: str) -> Rejected:
    return Rejected(number=number, key=None, stage="read", reason="bad-row", detail=detail)
