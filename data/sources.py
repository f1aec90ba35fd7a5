"""Where rows come from: what a person names by --source, each a stream of rows in a fixed order."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from data.entries import Entry, Source, SourceError, Values, number_rows
from data.folders import METADATA_FILES, metadata_rows, picture_rows
from data.hub import hub_rows
from data.meter import Meter
from data.places import PlaceError, glob, is_file, is_folder, join, list_folder, parent, walk
from data.tables import PACKED, Reader, open_table, refuse_encoding, table_kind
from data.tars import BuiltShards, tar_rows

KINDS = ".csv, .tsv, .jsonl, .json, .parquet, .tar"
_LOOK = 64  # samples of a tar that are looked at for the names of their members


def open_source(where: str, encoding: str | None = None) -> Source:
    """Open a catalogue: a file, a pattern (*.parquet), a folder, each here or at a URL, or hf:NAME[:CONFIG][@REVISION].

    A folder is the first of: shards that were built; a data set that datasets saved; pictures with metadata files;
    tables of one kind; tars; pictures. `encoding`: of the text of tables, found out if None.
    Raises SourceError if it is not there, none of these, or has no columns; PlaceError if it cannot be reached.
    """
    if where.startswith("hf:"):
        refuse_encoding(where, encoding)
        columns, rows = hub_rows(where)
        return _source(where, str(Path.cwd()), columns, rows)
    try:
        if is_folder(where):
            return _folder(where.rstrip("/") or where, encoding)
        if is_file(where):
            return _files(where, [where], parent(where), encoding)
        if any(mark in where for mark in "*?["):
            found = glob(where)
            if not found:
                raise SourceError(f"{where}: no file is named like that")
            return _files(where, found, parent(where.partition("*")[0] + "x"), encoding)
    except FileNotFoundError as error:
        raise SourceError(f"{where}: {error}") from error
    raise _not_there(where)


def _source(where: str, root: str, columns: list[str], rows: Reader, meter: Meter | None = None) -> Source:
    name = where if where.startswith("hf:") else where.rstrip("/").rpartition("/")[2] or where
    measured = meter or Meter()

    def entries() -> Iterator[Entry]:
        measured.start()
        for entry in number_rows(rows()):
            measured.row()
            yield entry

    return Source(
        name=name, columns=tuple(columns), picture_root=root, entries=entries, expected_rows=measured.expected
    )


def _not_there(where: str) -> SourceError:
    folder = parent(where)
    try:
        files, folders = list_folder(folder)
    except (OSError, PlaceError):
        return SourceError(f"{where}: there is no such catalogue; there is no folder {folder} either")
    beside = [*files, *folders][:8]
    return SourceError(
        f"{where}: there is no such catalogue; in {folder} there are {', '.join(beside) or 'no files at all'}"
    )


def _files(where: str, files: list[str], root: str, encoding: str | None) -> Source:
    """Files of one kind, one after the other."""
    tars = [file for file in files if _is_tar(file)]
    if tars and len(tars) == len([file for file in files if not file.endswith(".parquet")]):
        refuse_encoding(where, encoding)
        return _tars(where, tars, {file for file in files if file.endswith(".parquet")}, root)
    kinds = {table_kind(file) for file in files}
    if kinds - {None} != kinds or len(kinds) > 1:
        what = ", ".join(sorted({file.rpartition("/")[2] for file in files})[:8])
        raise SourceError(
            f"{where}: a catalogue is one or more files of one kind, which end in {KINDS}; found {what}; "
            "convert it, or rename it if it is one of these"
        )
    meter = Meter(files)
    columns, first = open_table(files[0], encoding, meter)

    def rows() -> Iterator[Values]:
        yield from first()
        for file in files[1:]:
            yield from open_table(file, encoding, meter)[1]()

    return _source(where, root, columns, rows, meter)


def _is_tar(file: str) -> bool:
    for end in PACKED:
        file = file.removesuffix(end)
    return file.lower().endswith((".tar", ".tgz"))


def _tars(where: str, tars: list[str], beside: set[str], root: str) -> Source:
    rows = partial(tar_rows, tars, beside)
    columns: dict[str, None] = {}
    for _, values in zip(range(_LOOK), rows(), strict=False):
        columns |= dict.fromkeys(values if isinstance(values, dict) else ())
    if not columns:
        raise SourceError(f"{where}: there is no sample in {tars[0]}; is it a WebDataset tar?")
    return _source(where, root, list(columns), rows)


def _folder(where: str, encoding: str | None) -> Source:
    files, _ = list_folder(where)
    if "manifest.json" in files and (built := BuiltShards.open(where)):
        refuse_encoding(where, encoding)
        first = next(built.rows(), None)
        if not isinstance(first, dict):
            raise SourceError(f"{where}: there is no sample in these shards")
        return _source(where, where, list(first), built.rows)
    if "dataset_dict.json" in files or {"state.json", "dataset_info.json"} <= set(files):
        columns, rows = hub_rows(f"hf:{where}")
        return _source(where, where, columns, rows)
    tables: list[str] = []
    tars: list[str] = []
    metadata: list[str] = []
    for inside, names in walk(where):
        paths = [f"{inside}/{name}".lstrip("/") for name in names]
        metadata += [path for path, name in zip(paths, names, strict=True) if name in METADATA_FILES]
        tables += [path for path in paths if table_kind(path) in ("csv", "tsv", "parquet") or path.endswith("l")]
        tars += [path for path in paths if _is_tar(path)]
    if metadata:
        meter = Meter(join(where, file) for file in metadata)
        return _source(where, where, *metadata_rows(where, metadata, encoding, meter), meter)
    tables = [path for path in tables if table_kind(path)]
    if tars or tables:
        found = [*tars, *tables] if tars and all(path.endswith(".parquet") for path in tables) else tars or tables
        return _files(where, [join(where, path) for path in found], where, encoding)
    refuse_encoding(where, encoding)
    return _source(where, where, *picture_rows(where))
