"""Tables as streams of rows: CSV, TSV, JSON (lines or one array), Parquet; of each any number of rows, here or far."""

import csv
import io
import json
import re
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from typing import Any

from data.entries import MAX_CELL, SourceError, Unreadable, Values
from data.meter import Meter, open_measured
from data.places import open_binary

MAX_LINE = 16 * MAX_CELL  # characters that are read of one line or one JSON object
_CHUNK = 1 << 16
_BATCH_BYTES = 16 << 20
Reader = Callable[[], Iterator[Values]]
PACKED = (".gz", ".bz2", ".xz", ".zst")


def table_kind(name: str) -> str | None:
    """csv | tsv | json | parquet by a file's name, its packing aside; None for what is no table."""
    name = name.lower()
    for end in PACKED:
        name = name.removesuffix(end)
    kinds = {"csv": "csv", "tsv": "tsv", "json": "json", "jsonl": "json", "ndjson": "json", "parquet": "parquet"}
    return kinds.get(name.rpartition(".")[2]) if "." in name else None


def open_table(where: str, encoding: str | None = None, meter: Meter | None = None) -> tuple[list[str], Reader]:
    """Open a table: its columns, and a function that makes a new pass over its rows.

    Arguments: the file; the encoding of its text, found out if None (UTF-8 or UTF-16); told what the passes read.
    Raises SourceError if it has no columns or is not what its name says; PlaceError, FileNotFoundError.
    """
    kind, meter = table_kind(where), meter or Meter()
    if kind == "parquet":
        refuse_encoding(where, encoding)
        return _parquet(where, meter)
    encoding = encoding or _encoding(where)
    return _json(where, encoding, meter) if kind == "json" else _csv(where, encoding, meter, kind == "tsv")


def refuse_encoding(where: str, encoding: str | None) -> None:
    """Raise SourceError if an encoding was named for a catalogue that needs none."""
    if encoding:
        raise SourceError(f"{where}: --encoding goes with CSV, TSV and JSON; leave it out, this says how its text is")


@contextmanager
def _text(where: str, encoding: str, meter: Meter | None = None, newline: str | None = None) -> Iterator[io.TextIOBase]:
    """A table's text. Raises SourceError where the bytes are not of the encoding at all."""
    # surrogateescape: one bad byte costs its row, not the catalogue.
    stream = open_measured(where, meter or Meter())
    with io.TextIOWrapper(stream, encoding=encoding, errors="surrogateescape", newline=newline) as text:
        try:
            yield text
        except UnicodeError as error:
            raise SourceError(
                f"{where}: {error}; mend the file, or name its encoding with --encoding, such as cp1252"
            ) from error


def _encoding(where: str) -> str:
    """UTF-16 by its mark, or by the zeros that ASCII has in it; else UTF-8, which may have a mark as well."""
    with open_measured(where, Meter()) as stream:
        start = stream.read(4)
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    if len(start) == 4 and start[1] == start[3] == 0 < min(start[0], start[2]):
        return "utf-16-le"
    return "utf-8-sig"


class _Lines:
    """Lines for csv.reader: remembers those of the record at hand and takes them back."""

    def __init__(self, text: io.TextIOBase) -> None:
        self._fresh = iter(lambda: text.readline(MAX_LINE), "")
        self._returned: deque[str] = deque()
        self.record: list[str] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._returned.popleft() if self._returned else next(self._fresh)
        self.record.append(line)
        return line

    def take_back(self, lines: list[str]) -> None:
        self._returned.extendleft(reversed(lines))


def _records(
    where: str, encoding: str, delimiter: str, width: int | None, meter: Meter | None = None
) -> Generator[list[str] | Unreadable, None, None]:
    """Records of a CSV of `width` columns; None for any width.

    A quotation mark that is never closed, or rows later, costs its own line: those it swallowed are read again.
    """
    csv.field_size_limit(MAX_LINE)
    with _text(where, encoding, meter, newline="") as text:
        lines = _Lines(text)
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        while True:
            lines.record = []
            record, what = None, ""
            try:
                record = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                what = str(error)
            first, *others = lines.record
            if others and (record is None or width not in (None, len(record))):
                lines.take_back(others)
                yield Unreadable("bad-row", f"a quotation mark is not closed in {first[:80]!r}")
                continue
            record = record if record is not None else _one_line(first, delimiter)
            if record is None:
                yield Unreadable("bad-row", f"{what} in {first[:80]!r}")
            elif record:
                yield record


def _one_line(line: str, delimiter: str) -> list[str] | None:
    """A line by csv's forgiving rules; None if a quotation mark stays open in it."""
    marked = line.rstrip("\r\n")
    try:
        records = list(csv.reader([marked + "\n", '"\n'], delimiter=delimiter))
    except csv.Error:
        return None
    return records[0] if len(records) == 2 else None


def _delimiter(where: str, encoding: str) -> str:
    with _text(where, encoding) as lines:
        header = re.sub(r'"[^"]*"', "", lines.readline(MAX_CELL))
    counts = {mark: header.count(mark) for mark in ",;\t|"}
    return max(counts, key=lambda mark: counts[mark])


def _csv(where: str, encoding: str, meter: Meter, tabs: bool) -> tuple[list[str], Reader]:
    delimiter = "\t" if tabs else _delimiter(where, encoding)
    with closing(_records(where, encoding, delimiter, None)) as records:
        columns = next(records, None)
    if columns is None:
        raise SourceError(f"{where} is empty: a catalogue starts with a line of column names")
    if isinstance(columns, Unreadable):
        raise SourceError(f"{where}, the line of column names: {columns.detail}")
    for name in columns:
        _check_name(where, name)
    width = len(columns)
    while columns and not columns[-1].strip():  # what spreadsheets leave behind the last column
        columns.pop()
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise SourceError(
            f"{where}: the column name(s) {', '.join(map(repr, twice))} stand there twice; rename one of each"
        )

    def rows() -> Iterator[Values]:
        records = _records(where, encoding, delimiter, width, meter)
        next(records)
        for record in records:
            if isinstance(record, Unreadable):
                yield record
            elif len(record) < len(columns) or any(record[len(columns) :]):
                yield Unreadable("bad-row", f"{len(record)} cells under {len(columns)} column names")
            else:
                yield dict(zip(columns, record, strict=False))

    return columns, rows


def _check_name(where: str, name: str) -> None:
    """Raise SourceError for a column's name that bytes of another encoding stand in."""
    if any("\udc80" <= letter <= "\udcff" for letter in name):
        raise SourceError(
            f"{where}: the column name {name.encode(errors='surrogateescape')!r} is not UTF-8; name the encoding of "
            "the table with --encoding, such as cp1252 (Western Europe), cp1251 (Cyrillic) or gb18030 (Chinese)"
        )


def _json(where: str, encoding: str, meter: Meter) -> tuple[list[str], Reader]:
    with _text(where, encoding) as text:
        start = text.read(_CHUNK).lstrip()

    def rows() -> Generator[Values, None, None]:
        with _text(where, encoding, meter, newline="\n") as text:
            yield from _array(where, text) if start.startswith("[") else _json_lines(text)

    with closing(rows()) as found:
        first = next((values for values in found if isinstance(values, dict)), None)
    if first is None:
        raise SourceError(f"{where} is empty: there is no JSON object in it")
    return list(first), rows


def _json_lines(text: io.TextIOBase) -> Iterator[Values]:
    while line := text.readline(MAX_LINE):
        if len(line) == MAX_LINE and not line.endswith("\n"):
            while (more := text.readline(MAX_LINE)) and not more.endswith("\n"):
                pass
            yield Unreadable("too-long", f"a line of more than {MAX_LINE:,} characters")
        elif line.strip():
            yield _object(line)


def _object(text: str) -> Values:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        return Unreadable("bad-row", f"not JSON: {error}")
    return values if isinstance(values, dict) else _no_object(values)


def _no_object(values: Any) -> Unreadable:
    return Unreadable("bad-row", f"a JSON {type(values).__name__}, not an object")


def _array(where: str, text: io.TextIOBase) -> Iterator[Values]:
    """The elements of a JSON array, of which only the one at hand is held."""
    decoder, buffer, taken, wanted = json.JSONDecoder(), text.read(_CHUNK).lstrip()[1:], 0, _CHUNK
    while True:
        buffer = buffer.lstrip(" \t\r\n,")
        if buffer.startswith("]"):
            return
        try:
            value, end = decoder.raw_decode(buffer)
            # A number may go on behind what was read so far; an object may not.
            whole = isinstance(value, dict) or end < len(buffer)
        except RecursionError as error:
            raise SourceError(f"{where}: element {taken} lies too deep within brackets: {error}") from error
        except ValueError as error:
            whole, what = False, error
        if whole:
            yield value if isinstance(value, dict) else _no_object(value)
            buffer, taken, wanted = buffer[end:], taken + 1, _CHUNK
            continue
        more = text.read(wanted)
        if not more or len(buffer) > MAX_LINE:
            raise SourceError(
                f"{where}: element {taken} of the array is not whole ({what if not more else 'too long'}); mend the "
                "file, or write the rows as JSON lines, where a bad one costs itself alone"
            )
        buffer, wanted = buffer + more, 2 * wanted


def _parquet(where: str, meter: Meter) -> tuple[list[str], Reader]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with open_binary(where) as stream:
            columns = pq.read_schema(stream).names
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise SourceError(f"{where} is not a Parquet file: {error}") from error

    def rows() -> Iterator[Values]:
        # Buffered, and few rows at once where rows are large: a row group of pictures is never held as a whole.
        with open_binary(where) as stream, pq.ParquetFile(stream, buffer_size=_CHUNK, pre_buffer=False) as file:
            whole = stream.seek(0, io.SEEK_END)
            held = sum(file.metadata.row_group(place).total_byte_size for place in range(file.num_row_groups))
            size = max(1, min(256, _BATCH_BYTES * file.metadata.num_rows // max(held, 1)))
            try:
                for batch in file.iter_batches(batch_size=size):
                    meter.read(whole * batch.num_rows / file.metadata.num_rows)
                    yield from _batch_rows(batch)
            except (pa.ArrowInvalid, OSError) as error:
                raise SourceError(f"{where} is damaged: {error}; bring back a whole file") from error

    return columns, rows


def _batch_rows(batch: Any) -> Iterable[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
        return rows
    except UnicodeDecodeError:
        # Text that is not UTF-8: taken as bytes and marked as csv marks it, so that it costs its rows alone.
        import pyarrow as pa

        text = [place for place, field in enumerate(batch.schema) if pa.types.is_string(field.type)]
        for place in text:
            batch = batch.set_column(place, batch.schema.names[place], batch.column(place).cast(pa.binary()))
        names = {batch.schema.names[place] for place in text}
        return [
            {
                name: value.decode(errors="surrogateescape") if name in names and value is not None else value
                for name, value in row.items()
            }
            for row in batch.to_pylist()
        ]
