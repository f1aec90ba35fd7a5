"""Catalogues with bad text: each row stands exactly once, in the shards or in rejected.jsonl with a reason."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.build import build
from data.build_options import BuildSettings
from data.manifest import Manifest
from data.plan import ShardSize
from data.schema import UserError
from data.shards import iter_samples
from data.verify import main as verify

MAPPING = """
key: id
product: id
prompt: "What is {title}?"
answer: "{title} for {price}"
fields:
  price: {column: price, type: number}
split: {fractions: {train: 1.0}}
"""
SPECIAL = "a<|end|></s><|user|>\n<|image_1|><|assistant|>b"


def cell(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def table(rows: list[tuple[str, str, str]]) -> bytes:
    lines = [("id", "title", "price"), *rows]
    return "".join(",".join(map(cell, line)) + "\n" for line in lines).encode("utf-8", "surrogateescape")


def one(key: str = "k", title: str = "coat", price: str = "5") -> bytes:
    """A catalogue of a bad row between two good ones."""
    return table([("first", "hat", "1"), (key, title, price), ("last", "shoe", "2")])


def lines(*middle: str, encoding: str = "utf-8") -> bytes:
    return "\n".join(["id,title,price", "first,hat,1", *middle, "last,shoe,2", ""]).encode(encoding)


# What the catalogue is, and what becomes of its rows in their order: a reason, or "" for a sample.
CASES: dict[str, tuple[bytes, list[str]]] = {
    "a key that climbs": (one(key="../../etc/passwd"), ["", "", ""]),
    "a key that is a path": (one(key="/etc/passwd"), ["", "", ""]),
    "a key with newlines": (one(key="a\nb\r\nc"), ["", "", ""]),
    "a key of emoji": (one(key="👗👠"), ["", "", ""]),
    "a key of 4,000 characters": (one(key="k" * 4000), ["", "", ""]),
    "a key with a dot": (one(key="a.json"), ["", "", ""]),
    "no key": (one(key=""), ["", "", ""]),
    "the key of another row": (one(key="first", title="coat"), ["", "", ""]),
    "the same row twice": (one(key="first", title="hat", price="1"), ["", "duplicate", ""]),
    "a title that climbs": (one(title="../../../x"), ["", "", ""]),
    "a title with newlines": (one(title="a\n\r\n\u2028b"), ["", "", ""]),
    "a title of emoji": (one(title="👩🏽\u200d🚀 \u202e"), ["", "", ""]),
    "a title of 4,000 characters": (one(title="x" * 4000), ["", "", ""]),
    "a cell of 10 MB": (one(title="x" * 10_000_000), ["", "too-long", ""]),
    "special tokens": (one(title=SPECIAL), ["", "", ""]),
    "a NUL": (one(title="a\0b"), ["", "", ""]),
    "bytes that are not UTF-8": (one(title="caf\udce9"), ["", "bad-text", ""]),
    "no title": (one(title=""), ["", "missing", ""]),
    "a title of spaces": (one(title="  "), ["", "missing", ""]),
    "a price that is missing": (one(price=""), ["", "missing", ""]),
    "a price of NaN": (one(price="NaN"), ["", "missing", ""]),
    "a price of infinity": (one(price="inf"), ["", "bad-number", ""]),
    "a price beyond a float": (one(price="1e999"), ["", "bad-number", ""]),
    "a price of 1,950.00": (one(price="1,950.00"), ["", "", ""]),
    "a price on request": (one(price="on request"), ["", "bad-number", ""]),
    "a price in another script": (one(price="१२३"), ["", "", ""]),
    "a quotation mark in a cell": (lines('k,12" coat,5'), ["", "", ""]),
    "a quotation mark that is never closed": (lines('k,"coat,5'), ["", "bad-row", ""]),
    "one that is closed rows later": (lines('k,"coat,5', "m,bag,3", 'n,"sock",4'), ["", "bad-row", "", "", ""]),
    "text behind a closed quotation mark": (lines('k,"coat"s,5'), ["", "", ""]),
    "too few cells": (lines("k,coat"), ["", "bad-row", ""]),
    "too many cells": (lines("k,coat,5,6"), ["", "bad-row", ""]),
    "blank lines": (lines("", "k,coat,5", ""), ["", "", ""]),
    "a mark in front": (b"\xef\xbb\xbf" + one(), ["", "", ""]),
    "UTF-16": (lines("k,пальто,5", encoding="utf-16"), ["", "", ""]),
    "UTF-16 without its mark": (lines("k,пальто,5", encoding="utf-16-le"), ["", "", ""]),
    "Windows' line ends": (lines("k,coat,5").replace(b"\n", b"\r\n"), ["", "", ""]),
    "old Macintosh's line ends": (lines("k,coat,5").replace(b"\n", b"\r"), ["", "", ""]),
}
LINES: dict[str, tuple[str, str]] = {
    "a line that is cut": ('{"id": "k", "title": "co', "bad-row"),
    "a line of another kind": ('["k", "coat", 5]', "bad-row"),
    "half a surrogate pair": ('{"id": "k", "title": "\\ud800", "price": 5}', "bad-text"),
    "half a pair in a list": ('{"id": "k", "title": "x", "price": 5, "more": ["\\ud800"]}', "bad-text"),
    "lists within lists": ('{"id": "k", "title": "x", "price": 5, "more": ' + "[" * 500 + "]" * 500 + "}", "bad-row"),
    "brackets without end": ("[" * 100_000, "bad-row"),
    "a number of 5,000 digits": ('{"id": "k", "title": "x", "price": ' + "9" * 5000 + "}", "bad-row"),
    "a price that is NaN": ('{"id": "k", "title": "x", "price": NaN}', "missing"),
    "a price that is true": ('{"id": "k", "title": "x", "price": true}', "bad-number"),
    "a title that is a list": ('{"id": "k", "title": ["x"], "price": 5}', "bad-value"),
    "no columns": ("{}", "bad-row"),
}


def built(folder: Path, name: str, content: bytes) -> tuple[dict[int, str], dict[int, Any]]:
    """Build a catalogue; row → reason of the rejected, row → sample of the others."""
    (folder / "mapping.yaml").write_text(MAPPING)
    (folder / name).write_bytes(content)
    out = folder / "out"
    settings = BuildSettings(
        preset=str(folder / "mapping.yaml"),
        source=str(folder / name),
        output=out,
        workers=0,
        max_rejected=1.0,
        size=ShardSize(samples=2),
    )
    build(settings)
    rejected = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert all(row["detail"] for row in rejected)
    samples = [sample for split in Manifest.load(out).shards for sample, _ in iter_samples(out, split)]
    rows = [row["row"] for row in rejected] + [sample.source["row"] for sample in samples]
    assert len(rows) == len(set(rows))
    assert len({sample.key for sample in samples}) == len(samples)
    assert verify([str(out)]) == 0
    return {row["row"]: row["reason"] for row in rejected}, {sample.source["row"]: sample for sample in samples}


@pytest.mark.parametrize("case", CASES)
def test_each_row_stands_once_in_the_shards_or_among_the_rejected(tmp_path: Path, case: str) -> None:
    content, expected = CASES[case]
    rejected, samples = built(tmp_path, "rows.csv", content)
    assert [rejected.get(row, "") for row in range(len(expected))] == expected
    assert len(rejected) + len(samples) == len(expected)


@pytest.mark.parametrize("case", LINES)
def test_each_line_of_json_too(tmp_path: Path, case: str) -> None:
    line, reason = LINES[case]
    good = '{"id": "first", "title": "hat", "price": 1}', '{"id": "last", "title": "shoe", "price": 2}'
    rejected, samples = built(tmp_path, "rows.jsonl", "\n".join([good[0], line, good[1]]).encode())
    assert (rejected, sorted(samples)) == ({1: reason}, [0, 2])


def test_text_comes_through_as_it_is(tmp_path: Path) -> None:
    _, samples = built(tmp_path, "rows.csv", one(key="../x", title=SPECIAL, price="1,950.00"))
    sample = samples[1]
    assert sample.messages[1]["content"] == f"{SPECIAL} for 1950.0"
    assert sample.messages[0]["content"] == f"What is {SPECIAL.replace('<|image_1|>', '<| image_1|>')}?"
    assert (sample.target, sample.source["columns"]["id"]) == ({"price": 1950.0}, "../x")
    assert "/" not in sample.key
    assert "." not in sample.key


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (lambda: b"id,title,id\n", "stand there twice"),
        (lambda: b"", "is empty"),
        (lambda: b"id,title,price\n", "no rows"),
        (lambda: one(title="x").replace(b"price", b"cost"), "no column 'price'"),
    ],
)
def test_what_is_no_catalogue_is_one_clear_error(tmp_path: Path, content: Callable[[], bytes], says: str) -> None:
    with pytest.raises(UserError, match=says):
        built(tmp_path, "rows.csv", content())
