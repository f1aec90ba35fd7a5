"""Downloads that wait to be checked, one behind the other in a few files: a fetch that was killed finds them again.

A file of its own for each would cost more than checking it: its name is made, changed and removed on a disk that has
millions of them. Only pictures too large to be held in memory have one.
"""

import os
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import xxhash

from data.asking import Visit
from data.urls import url_hash

FILE_BYTES = 64 << 20  # after which the next file is begun
_HEADER = struct.Struct("<4s16sQQHB")  # mark, hash of the URL, bytes, hash of them, attempts, length of the verdict
_MARK = b"pic1"
_SUFFIX = ".pictures"


@dataclass(frozen=True, slots=True)
class Stretch:
    """Where a download's bytes are."""

    path: str
    offset: int = 0
    bytes: int | None = None
    """None: to the file's end."""


@dataclass(frozen=True, slots=True)
class _Left:
    """A download that an earlier run left whole."""

    stretch: Stretch
    attempts: int
    robots: str


class Incoming:
    """The folder of what has arrived and is not checked yet."""

    def __init__(self, folder: Path, settle: Callable[[], None]) -> None:
        """Open the folder; what an earlier run left half-done in it is removed, what was whole is kept.

        `settle` is called before anything is removed that was checked: what became of it must outlive it.
        """
        self.folder = folder
        self._settle = settle
        folder.mkdir(parents=True, exist_ok=True)
        self._left: dict[bytes, _Left] = {}
        self._old: list[str] = []
        for path in sorted(folder.iterdir()):
            if path.suffix == _SUFFIX:
                self._old.append(str(path))
                self._left |= _whole_ones(path)
            elif path.name.count(".") == 2:
                name, attempts, robots = path.name.split(".")
                self._left[bytes.fromhex(name)] = _Left(Stretch(str(path)), int(attempts), robots)
            else:
                path.unlink()
        self._number = max((int(Path(path).stem) for path in self._old), default=0)
        self._waiting: Counter[str] = Counter()
        self._path = ""
        self._descriptor = -1
        self._end = 0

    def beside(self, url: str) -> str:
        """Where the bytes of a URL are written as they come, if they are too many to be held."""
        return f"{self.folder}/{url_hash(url).hex()}.part"

    def keep(self, url: str, visit: Visit, data: bytes | None) -> Stretch:
        """Keep what has come whole, `data` or what lies at `beside`; returns where it is now."""
        if data is None:
            path = f"{self.folder}/{url_hash(url).hex()}.{visit.attempts}.{visit.robots}"
            os.rename(self.beside(url), path)
            return Stretch(path)
        if self._descriptor < 0 or self._end >= FILE_BYTES:
            self._begin()
        robots = visit.robots.encode()
        header = _HEADER.pack(
            _MARK, url_hash(url), len(data), xxhash.xxh3_64_intdigest(data), visit.attempts, len(robots)
        )
        start = self._end + len(header) + len(robots)
        try:
            _write(self._descriptor, b"".join((header, robots, data)))
        except OSError:
            os.ftruncate(self._descriptor, self._end)
            raise
        self._end = start + len(data)
        self._waiting[self._path] += 1
        return Stretch(self._path, start, len(data))

    def find(self, url: str, visit: Visit) -> Stretch | None:
        """What an earlier run left whole of a URL, if anything; `visit` is filled in."""
        left = self._left.pop(url_hash(url), None) if self._left else None
        if left is None:
            return None
        visit.attempts, visit.robots = left.attempts, left.robots
        return left.stretch

    def release(self, path: str) -> None:
        """Say that a stretch of a file, or a file of its own in this folder, was checked and is not needed any more."""
        if path in self._waiting:
            self._waiting[path] -= 1
            self._remove_settled()
        elif path not in self._old:
            self._settle()
            os.unlink(path)

    def clear(self) -> None:
        """Remove everything: what was checked, and what no row asks for any more."""
        self._settle()
        self.close()
        for path in (*self._old, *self._waiting, *(left.stretch.path for left in self._left.values())):
            Path(path).unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file that is written; what is in it stays."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _begin(self) -> None:
        self.close()
        self._number += 1
        self._path, self._end = f"{self.folder}/{self._number:06d}{_SUFFIX}", 0
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o666)
        self._waiting[self._path] = 0
        self._remove_settled()

    def _remove_settled(self) -> None:
        done = [path for path, waiting in self._waiting.items() if not waiting and path != self._path]
        if done:
            self._settle()
        for path in done:
            os.unlink(path)
            del self._waiting[path]


def _whole_ones(path: Path) -> dict[bytes, _Left]:
    """What was written whole into a file, by the hash of its URL; a kill may have cut the last one."""
    found = {}
    with path.open("rb") as file:
        while len(header := file.read(_HEADER.size)) == _HEADER.size:
            mark, url, count, digest, attempts, length = _HEADER.unpack(header)
            robots = file.read(length)
            start = file.tell()
            data = file.read(count) if mark == _MARK else b""
            if mark != _MARK or len(data) != count or xxhash.xxh3_64_intdigest(data) != digest:
                break
            found[url] = _Left(Stretch(str(path), start, count), attempts, robots.decode())
    return found


def _write(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]
