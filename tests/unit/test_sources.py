"""Catalogues in all their forms: the same rows from each, and bad ones set aside or named."""

import contextlib
import gzip
import hashlib
import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.entries import MAX_CELL, SourceError
from data.hub import parse_name
from data.schema import Rejected, Row
from data.sources import open_source
from data.tars import TarError, read_tar

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


def test_the_encoding_of_a_table_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("größe;preis\nÄrmel;5 €\n".encode("cp1252"))
    with pytest.raises(SourceError, match=r"b'gr\\xf6\\xdfe' is not UTF-8; name the encoding .* --encoding, such as"):
        open_source(str(tmp_path / "a.csv"))
    source = open_source(str(tmp_path / "a.csv"), "cp1252")
    assert [row.values for row in source.entries() if isinstance(row, Row)] == [{"größe": "Ärmel", "preis": "5 €"}]
    (tmp_path / "a.jsonl").write_bytes('{"title": "Пальто"}\n'.encode("cp1251"))
    (entry,) = open_source(str(tmp_path / "a.jsonl")).entries()
    assert isinstance(entry, Rejected)
    assert (entry.reason, entry.detail) == ("bad-text", "column 'title': not UTF-8 (--encoding names another)")
    (entry,) = open_source(str(tmp_path / "a.jsonl"), "cp1251").entries()
    assert isinstance(entry, Row)
    assert entry.values == {"title": "Пальто"}
    pq.write_table(pa.table({"n": [1]}), tmp_path / "a.parquet")
    with pytest.raises(SourceError, match="--encoding goes with CSV, TSV and JSON"):
        open_source(str(tmp_path / "a.parquet"), "cp1252")


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_text_that_is_cut_in_a_letter_is_an_error_that_names_the_file(tmp_path: Path, name: str) -> None:
    text = csv_text() if name == "a.csv" else json.dumps(ROWS[0]) + "\n"
    (tmp_path / name).write_bytes(text.encode("utf-16") + b"A")
    with pytest.raises(SourceError, match=rf"{name}: .*; mend the file, or name its encoding"):
        values(tmp_path / name)


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.jsonl", "a.parquet"])
def test_while_a_table_is_read_its_rows_are_guessed_from_its_bytes(tmp_path: Path, name: str) -> None:
    rows = [{"n": str(number), "title": hashlib.sha256(str(number).encode()).hexdigest()} for number in range(10_000)]
    text = "n,title\n" + "".join(f"{row['n']},{row['title']}\n" for row in rows)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "a.csv").write_text(text)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "a.jsonl").write_text(lines)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    source = open_source(str(tmp_path / name))
    assert source.expected_rows() is None
    guesses = [source.expected_rows() for _ in source.entries()]
    assert [one for one in guesses[5000:] if one is None or not 6000 <= one <= 11_000] == []
    assert guesses[-1] == 10_000


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
    assert source.picture_root == str(tmp_path)
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
        ("a.xlsx", b"PK", "end in .csv, .tsv"),
        ("a.csv", b"x,y,x\n1,2,3\n", "'x' stand there twice"),
    ],
)
def test_a_catalogue_that_is_none_is_a_clear_error(tmp_path: Path, name: str, content: bytes | None, says: str) -> None:
    (tmp_path / "other.csv").write_text("a\n1\n")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=says):
        open_source(str(tmp_path / name))


def test_a_folder_of_nothing_known_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "a.doc").write_text("x")
    with pytest.raises(SourceError, match="neither a table, nor tars, nor pictures"):
        open_source(str(tmp_path))


def test_packed_tables_json_arrays_and_patterns(tmp_path: Path) -> None:
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(csv_text().encode()))
    assert values(tmp_path / "a.csv.gz") == ROWS
    rows = [{"n": number, "text": "x" * 999} for number in range(300)]
    (tmp_path / "b.json").write_text(json.dumps(rows, indent=1))
    assert values(tmp_path / "b.json") == rows
    for part in range(3):
        (tmp_path / f"part-{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[part::3]))
    assert values(f"{tmp_path}/part-*.jsonl") == [row for part in range(3) for row in rows[part::3]]
    with pytest.raises(SourceError, match="one or more files of one kind"):
        open_source(f"{tmp_path}/*")


def test_an_array_that_is_cut_is_an_error_that_names_the_place(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"a": 1}, 5, {"a": ')
    entries = open_source(str(tmp_path / "a.json")).entries()
    assert [type(next(entries)).__name__ for _ in range(2)] == ["Row", "Rejected"]
    with pytest.raises(SourceError, match="element 2 of the array is not whole"):
        next(entries)


def test_a_stray_quotation_mark_costs_its_own_row_alone(tmp_path: Path) -> None:
    lines = ["id,title", "0,ok", '1,"open', "2,ok", '3,say "hi"', '4,"a ""b"" c"', '5,"two\nlines"', '6,"x"y', '7,"end']
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
    entries = list(open_source(str(tmp_path / "a.csv")).entries())
    titles = [entry.values["title"] if isinstance(entry, Row) else entry.reason for entry in entries]
    assert titles == ["ok", "bad-row", "ok", 'say "hi"', 'a "b" c', "two\nlines", "xy", "bad-row"]


def test_a_folder_of_pictures_says_what_names_and_files_beside_say(tmp_path: Path) -> None:
    for name in ("train/coat/1.jpg", "train/coat/2.PNG", "test/hat/3.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "train/coat/1.txt").write_text("a coat")
    (tmp_path / "train/coat/1.json").write_text('{"price": 5}')
    hat, one, two = values(tmp_path)
    assert hat == {"file_name": "test/hat/3.jpg", "name": "3", "folder": "hat", "split": "test"}
    assert (one["txt"], one["price"], one["split"]) == ("a coat", 5, "train")
    assert two["file_name"] == "train/coat/2.PNG"


def test_metadata_files_name_pictures_beside_themselves(tmp_path: Path) -> None:
    for split in ("test", "train"):
        (tmp_path / split).mkdir()
        row = {"file_name": f"{split}.jpg", "front_file_names": ["f.jpg"], "title": split}
        (tmp_path / split / "metadata.jsonl").write_text(json.dumps(row))
    assert values(tmp_path)[1] == {
        "split": "train",
        "file_name": "train/train.jpg",
        "front_file_names": ["train/f.jpg"],
        "title": "train",
    }


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in files.items():
            add(tar, name, data)


def test_web_dataset_tars(tmp_path: Path) -> None:
    long = "folder/" + "x" * 150
    write_tar(tmp_path / "a.tar", {"k1.jpg": b"1", "k1.txt": b"one", f"{long}.0.png": b"2", f"{long}.1.png": b"3"})
    write_tar(tmp_path / "b.tar", {"k3.jpg": b"4", "k3.json": b'{"price": 5, "images": "x"}', "k4.json": b"{"})
    found = values(tmp_path)
    assert found[0] == {
        "__key__": "k1",
        "images": [{"bytes": b"1", "path": None}],
        "jpg": {"bytes": b"1", "path": None},
        "txt": "one",
    }
    assert (found[1]["__key__"], [one["bytes"] for one in found[1]["images"]]) == (long, [b"2", b"3"])
    assert (found[2]["price"], found[2]["json.images"]) == (5, "x")
    entries = list(open_source(f"{tmp_path}/*.tar").entries())
    assert [getattr(entry, "reason", "row") for entry in entries] == ["row", "row", "row", "bad-row"]


def test_img2dataset_output_with_what_was_not_downloaded(tmp_path: Path) -> None:
    write_tar(tmp_path / "00000.tar", {"000000001.jpg": b"1", "000000001.json": b'{"caption": "c", "url": "u"}'})
    rows = [
        {"key": "000000000", "url": "dead", "caption": "d", "status": "failed_to_download"},
        {"key": "000000001", "url": "u", "caption": "c", "status": "success"},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "00000.parquet")
    (tmp_path / "00000_stats.json").write_text("{}")
    good, dead = values(tmp_path)
    assert (good["jpg"]["bytes"], good["caption"], good["status"]) == (b"1", "c", "success")
    assert (dead["images"], dead["url"], dead["status"]) == ([], "dead", "failed_to_download")


@pytest.mark.parametrize("damage", ["cut", "header"])
def test_a_damaged_tar_is_counted_and_the_next_one_read(tmp_path: Path, damage: str) -> None:
    write_tar(tmp_path / "a.tar", {f"k{number}.jpg": b"x" * 600 for number in range(3)})
    write_tar(tmp_path / "b.tar", {"z.jpg": b"1"})
    data = bytearray((tmp_path / "a.tar").read_bytes())
    second = 512 + 1024
    (tmp_path / "a.tar").write_bytes(data[: second + 700] if damage == "cut" else data[:second] + b"?" * 512)
    entries = list(open_source(str(tmp_path)).entries())
    assert [getattr(entry, "reason", "row") for entry in entries] == ["row", "damaged-tar", "row"]
    assert isinstance(entries[1], Rejected)
    assert re.search(r"a\.tar: .*byte 2,\d{3}|a\.tar: .*byte 1,536", entries[1].detail)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=2000), st.integers(0, 2047), st.integers(0, 255))
def test_no_bytes_make_the_tar_reader_fail_otherwise_than_declared(noise: bytes, place: int, byte: int) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        add(tar, "x" * 120 + ".jpg", b"data")
    changed = bytearray(out.getvalue())
    changed[place] = byte
    for data in (noise, bytes(changed), bytes(changed[:place])):
        with contextlib.suppress(TarError):
            list(read_tar(io.BytesIO(data)))


def test_far_files_are_read_as_near_ones(tmp_path: Path) -> None:
    system = fsspec.filesystem("memory")
    system.pipe({"/far/rows.csv": csv_text().encode(), "/far/pictures/a.jpg": b"1", "/far/pictures/b/c.jpg": b"2"})
    try:
        source = open_source("memory://far/rows.csv")
        assert [row.values for row in source.entries() if isinstance(row, Row)] == ROWS
        assert source.picture_root == "memory://far"
        assert [row["file_name"] for row in values("memory://far/pictures")] == ["a.jpg", "b/c.jpg"]
        with pytest.raises(SourceError, match=r"no such catalogue; in memory://far there are rows\.csv"):
            open_source("memory://far/none.csv")
    finally:
        system.rm("/far", recursive=True)


def test_a_data_set_saved_to_disk(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"images": datasets.List(datasets.Image()), "title": datasets.Value("string")})
    rows = {"images": [[{"bytes": b"not decoded", "path": None}]], "title": ["x"]}
    datasets.Dataset.from_dict(rows, features=features, split="test").save_to_disk(str(tmp_path / "set"))
    expected = {"split": "test", "images": [{"bytes": b"not decoded", "path": None}], "title": "x"}
    assert values(tmp_path / "set") == values(f"hf:{tmp_path / 'set'}") == [expected]


def test_pictures_that_datasets_only_points_to_are_read_if_they_are_its_own(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "set").mkdir()
    for name in ("secret.bin", "set/own.bin"):
        (tmp_path / name).write_bytes(name.encode())
    named = [str(tmp_path / name) for name in ("secret.bin", "set/own.bin", "set/../secret.bin")]
    (tmp_path / "set/link.bin").symlink_to(tmp_path / "secret.bin")
    named.append(str(tmp_path / "set/link.bin"))
    held: list[dict[str, Any]] = [{"bytes": None, "path": name} for name in named]
    pq.write_table(pa.table({"images": [held]}), tmp_path / "set/rows.parquet")
    (found,) = values(f"hf:{tmp_path / 'set'}")
    held[1] = {"bytes": b"set/own.bin", "path": "own.bin"}
    assert found == {"split": "train", "images": held}


def test_the_parts_of_a_data_sets_name() -> None:
    assert parse_name("hf:a/b:small@main") == ("a/b", "small", "main")
    assert parse_name("hf:/folder") == ("/folder", None, None)
