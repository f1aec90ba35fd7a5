"""Writes the sample catalogue into a folder: rows and pictures by several processes, whole or not there."""

import csv
import io
import json
import multiprocessing
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.sample.broken import Broken, file_content, shown_item
from data.sample.draw import draw_picture, picture_format
from data.sample.rows import COLUMNS, catalogue_row
from data.schema import UserError
from data.whole import write_whole

CATALOGUE = "catalogue.csv"
URLS = "catalogue_urls.csv"
BROKEN = "broken.jsonl"
PICTURES = "pictures"
# Changes whenever the same seed would give other bytes, so that an older sample is not taken for a new one.
DRAWING = 2
# So many rows are drawn by a process at a time.
PORTION = 32


@dataclass(frozen=True, slots=True)
class Summary:
    """What a sample holds: rows, picture files, bytes of these, broken rows by kind; seconds it took to draw."""

    rows: int
    pictures: int
    picture_bytes: int
    broken: dict[str, int]
    seconds: float


def write_sample(folder: Path, rows: int, seed: int, processes: int | None = None) -> Summary | None:
    """Draw a sample catalogue into `folder`, which must not exist or be empty.

    rows: how many; row i is a function of (seed, i) alone, so fewer rows are a prefix of more.
    processes: how many draw; None: as many as this process may use cores. The bytes do not depend on it.
    Returns what was drawn, or None where the folder already holds this very sample.
    Raises UserError where the folder holds anything else or cannot be written.
    """
    folder = folder.resolve()
    if rows < 1 or seed < 0:
        raise UserError(f"--rows {rows} --seed {seed}: at least 1 row and a seed of at least 0 are needed")
    if processes is not None and processes < 1:
        raise UserError(f"--processes {processes}: at least 1 is needed; leave it out for one a core")
    title = _readme_title(rows, seed)
    if _is_whole(folder, title):
        return None
    started = time.perf_counter()
    partial = folder.with_name(f".{folder.name}.sample-partial")
    try:
        if partial.exists():
            shutil.rmtree(partial)
        (partial / PICTURES).mkdir(parents=True)
        summary = _write_all(partial, rows, seed, processes or len(os.sched_getaffinity(0)), title, started)
        # Thousands of small files: one sync of all is far quicker than one each.
        os.sync()
        os.replace(partial, folder)
    except OSError as error:
        raise UserError(
            f"{folder}: the sample cannot be written: {error}; name a folder that can be written"
        ) from error
    return summary


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of a catalogue file as text."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """A catalogue file with the seventeen columns; whole or not there."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue().encode())


def _is_whole(folder: Path, title: str) -> bool:
    """Whether the folder holds the sample of this title; UserError where it holds anything else."""
    if not folder.exists():
        return False
    if not folder.is_dir():
        raise UserError(f"{folder}: is a file; name a folder for the sample catalogue")
    if not any(folder.iterdir()):
        return False
    readme = folder / "README.txt"
    first = readme.read_text(encoding="utf-8").partition("\n")[0] if readme.is_file() else ""
    if first == title:
        return True
    found = f"holds another sample ({first})" if first.startswith("Sample catalogue: ") else "is not empty"
    raise UserError(f"{folder}: {found}; name another folder or delete this one first")


def _write_all(folder: Path, rows: int, seed: int, processes: int, title: str, started: float) -> Summary:
    table: list[dict[str, Any]] = []
    faults: list[dict[str, Any]] = []
    written: dict[str, int] = {}
    for row, fault, name, size in _draw_rows(folder, rows, seed, processes):
        table.append(row)
        if name is not None:
            written[name] = size
        if fault is not None:
            of = {} if fault.of is None else {"of": fault.of}
            faults.append({"row": fault.row, "product_code": row["product_code"], "kind": fault.kind, **of})
    write_rows(folder / CATALOGUE, table)
    lines = "".join(json.dumps(fault) + "\n" for fault in faults)
    (folder / BROKEN).write_text(lines, encoding="utf-8")
    kinds = dict(Counter(fault["kind"] for fault in faults))
    (folder / "README.txt").write_text(_readme(title), encoding="utf-8")
    return Summary(rows, len(written), sum(written.values()), kinds, time.perf_counter() - started)


Drawn = tuple[dict[str, Any], Broken | None, str | None, int]


def _draw_rows(folder: Path, rows: int, seed: int, processes: int) -> Iterator[Drawn]:
    """Rows in order, their pictures written; with each the name and the bytes of its file, if it has one."""
    portions = [(folder, seed, first, min(first + PORTION, rows)) for first in range(0, rows, PORTION)]
    if processes == 1 or len(portions) == 1:
        for portion in portions:
            yield from _draw_portion(portion)
        return
    with multiprocessing.get_context("spawn").Pool(min(processes, len(portions))) as pool:
        for drawn in pool.imap(_draw_portion, portions):
            yield from drawn


def _draw_portion(portion: tuple[Path, int, int, int]) -> list[Drawn]:
    folder, seed, first, end = portion
    return [_draw_row(folder, seed, number) for number in range(first, end)]


def _draw_row(folder: Path, seed: int, number: int) -> Drawn:
    item, fault = shown_item(seed, number)
    kind = fault.kind if fault else None
    suffix = picture_format(seed, item).suffix
    name = f"{item.product_code}-copy.{suffix}" if kind == "copy" else f"{item.product_code}.{suffix}"
    imageurl = {"no_url": "", "none_url": "None"}.get(kind or "", f"{PICTURES}/{name}")
    row = catalogue_row(seed, item, imageurl)
    content = file_content(kind, draw_picture(seed, item))
    if content is None:
        return row, fault, None, 0
    (folder / PICTURES / name).write_bytes(content)
    return row, fault, name, len(content)


def _readme_title(rows: int, seed: int) -> str:
    return f"Sample catalogue: {rows} rows, seed {seed}, drawing {DRAWING}"


def _readme(title: str) -> str:
    return f"""{title}

{CATALOGUE}   one product a row, 17 columns; imageurl is a path relative to this file, empty or None
{PICTURES}/       the pictures: JPEG (some turned by EXIF), PNG (some transparent), WebP, some in grey
{BROKEN}    the rows that are broken on purpose, one JSON object a line: row (from 0, the header not
               counted), product_code, kind (missing, truncated, html, empty, no_url, none_url, duplicate, copy)
               and, for the last two, the row that is repeated ("of")

Everything here is drawn by a program and describes no real product: shop, brand and prices are made up.
A picture shows the category (outline), the colour, the fabric (pattern and material), the trimming (none, a
turquoise ribbon, a broad gold band with buttons) and the script of the title (a label in a corner, none for
Latin). The full price is category x fabric x trimming with 3 % of noise, in dollars, rounded to tens.
"""
