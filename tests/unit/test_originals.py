"""Checked pictures in volumes: read back as they came, or said to be changed."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import volumes
from data.ledger import Found
from data.originals import PictureChanged, bytes_of, forget, unchanged

DATA = b"some bytes"
PLACE = "volumes/000001.pictures"


@pytest.fixture
def reader() -> Iterator[volumes.Reader]:
    with volumes.Reader() as one:
        yield one


def written(downloads: Path) -> Found:
    (downloads / "volumes").mkdir()
    other = b"others before it"
    other = volumes.header_of(b"a" * 16, other, 1, "none") + other
    header = volumes.header_of(b"b" * 16, DATA, 1, "unreachable")
    (downloads / PLACE).write_bytes(other + header + DATA + other)
    return Found(
        url="http://shop.example/a.jpg", place=PLACE, offset=len(other) + len(header), format="jpg", bytes=len(DATA),
        sha256="", phash=0, width=1, height=1, mtime_ns=0, attempts=1,
    )  # fmt: skip


def test_a_picture_of_a_volume_comes_back_as_it_came(tmp_path: Path, reader: volumes.Reader) -> None:
    found = written(tmp_path)
    assert bytes_of(tmp_path, found, reader) == DATA
    assert unchanged(tmp_path, found)


def changed(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "noticed"),
    [
        (lambda path, found: changed(path, found.offset + 3), False),
        (lambda path, found: path.write_bytes(path.read_bytes()[: found.offset + 3]), True),
        (lambda path, found: path.unlink(), True),
        (lambda path, found: forget(path.parents[1], found), True),
    ],
)
def test_one_that_is_not_what_it_was_is_named(
    tmp_path: Path, reader: volumes.Reader, harm: Callable[[Path, Found], object], noticed: bool
) -> None:
    found = written(tmp_path)
    harm(tmp_path / PLACE, found)
    assert unchanged(tmp_path, found) != noticed
    with pytest.raises(PictureChanged, match=r"shop\.example/a\.jpg .*run the same command again"):
        bytes_of(tmp_path, found, reader)
    forget(tmp_path, found)
    assert not unchanged(tmp_path, found)


def test_another_place_in_the_volume_is_not_taken(tmp_path: Path, reader: volumes.Reader) -> None:
    found = written(tmp_path)
    for offset in (found.offset - 1, found.offset + 1, 3):
        with pytest.raises(PictureChanged):
            bytes_of(tmp_path, found._replace(offset=offset), reader)


@given(st.binary(max_size=400), st.integers(0, 400))
def test_whatever_stands_in_a_volume_nothing_but_the_declared_errors_comes(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes, cut: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "junk.pictures"
    header = volumes.header_of(b"a" * 16, DATA, 1, "none")
    path.write_bytes((header + DATA + junk)[:cut])
    for whole in volumes.whole_ones(path):
        assert volumes.holds(str(path), whole.offset, whole.bytes)
        with volumes.Reader() as reader:
            assert len(reader.whole(str(path), whole.offset, whole.bytes)) == whole.bytes
    path.write_bytes(junk)
    with volumes.Reader() as reader, suppress(volumes.VolumeError):
        reader.whole(str(path), len(header), len(DATA))


def test_a_reader_goes_from_volume_to_volume_and_leaves_none_open(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in "ab"]
    for path in paths:
        path.write_bytes(path.name.encode() * 9)
    before = set(os.listdir("/proc/self/fd"))
    with volumes.Reader() as reader:
        assert [reader.read(str(paths[one]), 2, 3) for one in (0, 1, 1, 0)] == [b"aaa", b"bbb", b"bbb", b"aaa"]
        with pytest.raises(FileNotFoundError):
            reader.read(str(tmp_path / "c"), 0, 1)
        assert reader.read(str(paths[0]), 7, 9) == b"aa"
    assert set(os.listdir("/proc/self/fd")) == before
