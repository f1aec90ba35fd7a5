"""index.arrow: what is written comes back, as plain arrays."""

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from data.index import Index, IndexEntry, IndexFileError, Member, write_index


def entry(number: int) -> IndexEntry:
    return IndexEntry(
        key=f"key-{number}",
        shard=number // 10,
        offset=number * 1024,
        length=1024,
        members=(
            Member(name="json", offset=number, size=1),
            *(Member(name=f"{k}.jpg", offset=k, size=2) for k in range(number % 3)),
        ),
        xxh3=2**64 - 1 - number,
        image_sizes=tuple((number + 1, k + 1) for k in range(number % 3)),
        text_bytes=number,
        group=f"g{number % 7}",
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_index(tmp_path / "index.arrow", (entry(number) for number in range(100)))
    return tmp_path / "index.arrow"


def test_entries_come_back(path: Path) -> None:
    index = Index.open(path)
    assert [index.entry(number) for number in range(len(index))] == [entry(number) for number in range(100)]
    assert index.keys[42] == "key-42"
    assert index.find("key-42") == 42
    assert index.find("key-100") is None


def test_columns_are_arrays_that_own_no_memory(path: Path) -> None:
    index = Index.open(path)
    assert index.offset.tolist() == [number * 1024 for number in range(100)]
    assert index.xxh3.dtype == np.uint64
    assert index.xxh3[0] == 2**64 - 1
    assert set(index.text_tokens.tolist()) == set(index.label_tokens.tolist()) == {-1}
    for column in (index.shard, index.offset, index.length, index.xxh3, index.text_bytes, index.picture_sizes):
        assert not column.flags.owndata


def test_pictures_are_found_by_their_offsets(path: Path) -> None:
    index = Index.open(path)
    assert index.picture_counts.tolist() == [number % 3 for number in range(100)]
    assert index.picture_sizes.shape == (index.picture_counts.sum(), 2)
    for number in range(100):
        pictures = index.picture_sizes[index.picture_offsets[number] : index.picture_offsets[number + 1]]
        assert [tuple(size) for size in pictures.tolist()] == list(entry(number).image_sizes)


def test_an_index_goes_to_another_process_by_its_path(path: Path) -> None:
    assert pickle.loads(pickle.dumps(Index.open(path))).entry(5) == entry(5)


def test_an_index_of_nothing_opens(tmp_path: Path) -> None:
    write_index(tmp_path / "index.arrow", [])
    index = Index.open(tmp_path / "index.arrow")
    assert len(index) == len(index.shard) == len(index.picture_sizes) == 0
    with pytest.raises(IndexError):
        index.entry(0)


def test_the_same_entries_are_the_same_bytes(path: Path, tmp_path: Path) -> None:
    write_index(tmp_path / "again.arrow", [entry(number) for number in range(100)])
    assert (tmp_path / "again.arrow").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("content", [b"", b"not arrow" * 100])
def test_what_is_no_index_is_said_so(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "index.arrow").write_bytes(content)
    with pytest.raises(IndexFileError, match="build the shards again"):
        Index.open(tmp_path / "index.arrow")


def test_a_missing_foreign_or_cut_index_is_said_so(path: Path, tmp_path: Path) -> None:
    with pytest.raises(IndexFileError, match="no such index"):
        Index.open(tmp_path / "none.arrow")
    table = pa.table({"key": ["a"]})
    with pa.OSFile(str(tmp_path / "other.arrow"), "wb") as out, pa.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(IndexFileError, match="another format"):
        Index.open(tmp_path / "other.arrow")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(IndexFileError, match="not an index"):
        Index.open(path)
