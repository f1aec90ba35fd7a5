"""How far a catalogue is read, by the bytes of its files; from that, about how many rows it has."""

import io
import os
from collections.abc import Iterable
from typing import BinaryIO, cast

from data.places import is_remote, open_binary


class Meter:
    """Told of what one pass over a catalogue's files reads, and of the rows that come of it."""

    def __init__(self, files: Iterable[str] = ()) -> None:
        """`files`: all that are read. With none, or with one that is far away, nothing can be told."""
        files = list(files)
        self._size = 0 if any(map(is_remote, files)) else sum(map(os.path.getsize, files))
        self._read = 0.0
        self._rows = 0

    def start(self) -> None:
        """Begin a pass."""
        self._read, self._rows = 0.0, 0

    def read(self, size: float) -> None:
        """Take note of bytes that were read."""
        self._read += size

    def row(self) -> None:
        """Take note of a row."""
        self._rows += 1

    def expected(self) -> int | None:
        """About how many rows there are, more exactly the more is read; None where that cannot be told."""
        return round(self._rows * self._size / self._read) if self._rows and self._read and self._size else None


class _Measured(io.FileIO):
    """A file of this machine that tells a meter what is read of it."""

    def __init__(self, where: str, meter: Meter) -> None:
        super().__init__(where)
        self._meter = meter

    def readinto(self, buffer) -> int | None:  # type: ignore[no-untyped-def]
        size = super().readinto(buffer)
        self._meter.read(size or 0)
        return size


def open_measured(where: str, meter: Meter) -> BinaryIO:
    """A stream of a table's bytes, unpacked by its name's end; what is read of a file here counts as it is packed.

    Raises PlaceError, OSError.
    """
    if is_remote(where):
        return open_binary(where, "infer")
    from fsspec.compression import compr
    from fsspec.utils import infer_compression

    raw, packing = io.BufferedReader(_Measured(where, meter)), infer_compression(where)
    return cast(BinaryIO, compr[packing](raw, mode="rb") if packing else raw)
