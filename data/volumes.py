"""Volumes: files of many downloaded pictures, one behind the other with a header each.

A file of its own for each costs more than to check a small picture: made on a disk that has millions of them, opened
again, removed one day. What is in a volume stays as it came.
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import xxhash

_HEADER = struct.Struct("<4s16sQQH12s")  # mark, hash of the URL, bytes, hash of them, attempts, verdict of robots.txt
_HERE, _GONE = b"pic2", b"gone"


class VolumeError(Exception):
    """A picture that is not whole any more."""


@dataclass(frozen=True, slots=True)
class Whole:
    """A picture that was written whole into a volume."""

    url_hash: bytes
    offset: int
    bytes: int
    attempts: int
    robots: str


def header_of(url_hash: bytes, data: bytes, attempts: int, robots: str) -> bytes:
    """What is written before a picture's bytes."""
    return _HEADER.pack(_HERE, url_hash, len(data), xxhash.xxh3_64_intdigest(data), attempts, robots.encode())


def whole_ones(path: Path) -> Iterator[Whole]:
    """What stands whole in a volume and was not forgotten; a kill may have cut the last one."""
    with path.open("rb") as file:
        while len(header := file.read(_HEADER.size)) == _HEADER.size:
            mark, url_hash, count, digest, attempts, robots = _HEADER.unpack(header)
            start = file.tell()
            data = file.read(count) if mark in (_HERE, _GONE) else b""
            if mark == _HERE and len(data) == count and xxhash.xxh3_64_intdigest(data) == digest:
                yield Whole(url_hash, start, count, attempts, robots.rstrip(b"\0").decode())
            elif mark != _GONE:
                return


def holds(path: str, offset: int, count: int) -> bool:
    """Whether a volume still has a picture there; its bytes are not looked at."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        header = os.pread(descriptor, _HEADER.size, offset - _HEADER.size)
        return header[: len(_HERE)] == _HERE and os.fstat(descriptor).st_size >= offset + count
    finally:
        os.close(descriptor)


def forget(path: str, offset: int) -> None:
    """Have a picture of a volume count as gone, as its bytes are not what they were."""
    try:
        descriptor = os.open(path, os.O_WRONLY)
    except FileNotFoundError:
        return
    try:
        os.pwrite(descriptor, _GONE, offset - _HEADER.size)
    finally:
        os.close(descriptor)


class Reader:
    """Reads from volumes; a context manager. The last volume stays open: what is read next is mostly in it."""

    def __init__(self) -> None:
        self._path, self._descriptor = "", -1

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        if self._path:
            os.close(self._descriptor)
            self._path = ""

    def whole(self, path: str, offset: int, count: int) -> bytes:
        """A picture, proved to be what came. Raises OSError, and VolumeError if it is not."""
        found = self.read(path, offset - _HEADER.size, _HEADER.size + count)
        if len(found) < _HEADER.size + count:
            raise VolumeError("the volume ends before it")
        mark, _, length, digest, _, _ = _HEADER.unpack_from(found)
        data = found[_HEADER.size :]
        if mark != _HERE or length != count or xxhash.xxh3_64_intdigest(data) != digest:
            raise VolumeError("its bytes are not those that came")
        return data

    def read(self, path: str, offset: int, count: int) -> bytes:
        """Bytes of a volume, fewer if it ends before. Raises OSError."""
        if path != self._path:
            self.__exit__()
            self._descriptor = os.open(path, os.O_RDONLY)
            self._path = path
        return os.pread(self._descriptor, count, offset)
