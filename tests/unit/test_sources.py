"""Catalogues in all their forms: the same rows from each, and bad ones set aside or named."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.schema import Rejected, Row
from data.sources import MAX_CELL, SourceError, open_source

ROWS: list[dict[str, Any]] = [{"title": 'Пальто, "A"\nB', "price": "1950.0"}, {"title": "外套", "price": "20"}]


def values(where: Path | str) -> list[dict[str, Any]]:
    rows = list(open_source(str(where)).entries())
    assert [row.number for row in rows] == list(range(len(rows)))
    return [row.values for row in rows if isinstance(row, Row)]


def csv_text(delimiter: str = ",") -> str:
    cells = [["title", "price"], ['"Пальто, ""A""\nB"', "1950.0"], ["外套", "20"]]
    return "".join(delimiter.join(line) + "\r\n" for line in cells)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_csv_in_the_encodings_people_have(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.csv").write_bytes(csv_text().encode(encoding))
    assert values(tmp_path / "a.csv") == ROWS


def test_tsv_and_semicolons(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text(csv_text("\t"))
    (tmp_path / "a.csv").write_text("title;price\nx;1\n")
    assert values(tmp_path / "a.tsv") == ROWS
    assert values(tmp_path / "a.csv") == [{"title": "x", "price": "1"}]


def test_json_lines(tmp_path: Path) -> None:
    lines = [json.dumps(ROWS[0]), "", json.dumps(ROWS[1], ensure_ascii=False)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert values(tmp_path / "a.jsonl") == ROWS


def test_parquet_keeps_types_and_bytes(tmp_path: Path) -> None:
    rows = [{"n": 1, "x": 1950.0, "p": {"bytes": b"abc", "path": "a.jpg"}}, {"n": 2, "x": float("nan"), "p": None}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert values(tmp_path / "a.parquet") == [rows[0], {"n": 2, "x": None, "p": None}]


def test_a_folder_is_its_metadata_file(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("file_name,title\na.jpg,x\n")
    source = open_source(str(tmp_path))
    assert source.columns == ("file_name", "title")
    assert source.picture_root == tmp_path
    assert values(tmp_path) == [{"file_name": "a.jpg", "title": "x"}]


def test_a_local_data_set_with_pictures_as_bytes_and_its_splits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features({"image": datasets.Image(), "title": datasets.Value("string")})
    (tmp_path / "set").mkdir()
    for split, title in (("train", "x"), ("test", "y")):
        rows = {"image": [{"bytes": b"not decoded", "path": "a.jpg"}], "title": [title]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "set" / f"{split}.parquet"))
    found = values(f"hf:{tmp_path / 'set'}")
    assert {(row["split"], row["title"], row["image"]["bytes"]) for row in found} == {
        ("train", "x", b"not decoded"),
        ("test", "y", b"not decoded"),
    }
    with pytest.raises(SourceError, match="cannot load"):
        open_source(f"hf:{tmp_path / 'none'}")


def test_rows_that_cannot_be_read_keep_their_place(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(
        b"title,price\nok,1\nshort\nlong,1,2\nbad\xff,3\n" + b"x" * (MAX_CELL + 1) + b",4\n\nnul\0,5\n"
    )
    entries = list(open_source(str(tmp_path / "a.csv")).entries())
    assert [entry.number for entry in entries] == list(range(6))
    assert [entry.reason if isinstance(entry, Rejected) else "row" for entry in entries] == [
        "row", "bad-row", "bad-row", "bad-text", "too-long", "row",
    ]  # fmt: skip
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n{"a": \n[1]\n{"a": "\\ud800"}\n' + b"[" * 100_000 + b"\n")
    entries = list(open_source(str(tmp_path / "a.jsonl")).entries())
    assert [entry.reason if isinstance(entry, Rejected) else "row" for entry in entries] == [
        "row", "bad-row", "bad-row", "bad-text", "bad-row",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("none.csv", None, "no such catalogue; in .* there are other.csv"),
        ("a.csv", b"", "is empty"),
        ("a.jsonl", b"\n", "is empty"),
        ("a.parquet", b"PAR1", "not a Parquet file"),
        ("a.xlsx", b"PK", "ends in .csv, .tsv"),
        ("a.csv", b"x,y,x\n1,2,3\n", "'x' stand there twice"),
    ],
)
def test_a_catalogue_that_is_none_is_a_clear_error(tmp_path: Path, name: str, content: bytes | None, says: str) -> None:
    (tmp_path / "other.csv").write_text("a\n1\n")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=says):
        open_source(str(tmp_path / name))


def test_a_folder_without_metadata_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"metadata\.csv"):
        open_source(str(tmp_path))
