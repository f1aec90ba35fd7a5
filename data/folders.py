"""Folders as catalogues: pictures with metadata files as in Hugging Face's imagefolder, or pictures alone."""

import json
from collections.abc import Iterator
from typing import Any

from data.entries import SourceError, Values
from data.meter import Meter
from data.places import join, open_binary, parent, walk
from data.tables import Reader, open_table
from data.tars import PICTURES, TEXTS

METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.tsv", "metadata.parquet")
SPLITS = ("train", "validation", "valid", "val", "dev", "test")
_MAX_TEXT = 4 << 20


def metadata_rows(
    folder: str, files: list[str], encoding: str | None = None, meter: Meter | None = None
) -> tuple[list[str], Reader]:
    """The rows of a folder's metadata files, one after the other; what they name is relative to where they stand.

    Arguments: the folder; the files, relative to it; `encoding` and `meter` as `open_table` takes them. A file in a
    folder named train, test and the like gives its rows the column `split`, unless they have one.
    """
    opened = {file: open_table(join(folder, file), encoding, meter) for file in files}
    columns = list(dict.fromkeys(name for names, _ in opened.values() for name in names))
    if any(_split(file) for file in files):
        columns = list(dict.fromkeys([*columns, "split"]))

    def rows() -> Iterator[Values]:
        for file, (_, own) in opened.items():
            inside, split = parent("/" + file).strip("/"), _split(file)
            for values in own():
                if isinstance(values, dict):
                    values = {name: _within(inside, name, value) for name, value in values.items()}
                    values = {"split": split, **values} if split else values
                yield values

    return columns, rows


def _split(file: str) -> str | None:
    first = file.partition("/")[0] if "/" in file else ""
    return first if first in SPLITS else None


def _within(folder: str, column: str, value: Any) -> Any:
    """A value that names files beside its metadata file, relative to the whole folder."""
    if not folder or not column.endswith(("file_name", "file_names")):
        return value
    if isinstance(value, list):
        return [_within(folder, column, one) for one in value]
    return f"{folder}/{value}" if isinstance(value, str) and value else value


def picture_rows(folder: str) -> tuple[list[str], Reader]:
    """A folder of pictures as rows: `file_name`, `name` without its ending, `folder` it stands in, `split` if its first
    folder is named train, test and the like, and what a .json or .txt of the same name says.

    Raises SourceError if there is no picture in it.
    """

    def rows() -> Iterator[Values]:
        for inside, names in walk(folder):
            here, known = join(folder, inside) if inside else folder, set(names)
            for name in names:
                stem, _, ending = name.rpartition(".")
                if ending.lower() in PICTURES:
                    file = f"{inside}/{name}".lstrip("/")
                    row = {"file_name": file, "name": stem, "folder": inside.rpartition("/")[2], "split": _split(file)}
                    yield row | _said_beside(here, stem, known)

    first = next(rows(), None)
    if not isinstance(first, dict):
        raise SourceError(f"{folder}: neither a table, nor tars, nor pictures are in this folder")
    return list(first), rows


def _said_beside(folder: str, stem: str, known: set[str]) -> dict[str, Any]:
    """What stands in the text files beside a picture: .txt and the like as a column each, .json by its entries."""
    said: dict[str, Any] = {}
    for ending in (*TEXTS, "json"):
        if f"{stem}.{ending}" in known:
            with open_binary(join(folder, f"{stem}.{ending}")) as stream:
                text = stream.read(_MAX_TEXT).decode("utf-8-sig", "surrogateescape")
            said[ending] = text
    if "json" in said:
        try:
            entries = json.loads(said["json"])
        except (ValueError, RecursionError):
            entries = None  # the column json keeps the text as it is
        if isinstance(entries, dict):
            said = entries | {ending: text for ending, text in said.items() if ending != "json"}
    return said
