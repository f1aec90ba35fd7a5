"""Downloads that wait to be checked: a fetch that was killed finds them again.

They lie in volumes, where those that prove to be pictures stay. Only what is too large to be held in memory has a file
of its own until it is checked.
"""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from data.asking import Visit
from data.urls import url_hash
from data.volumes import header_of, whole_ones

VOLUME_BYTES = 64 << 20  # after which the next one is begun
_VOLUME, _OPEN = ".pictures", ".open"


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
    """What has arrived. Beside a volume lies a mark until all that is in it was checked and remembered."""

    def __init__(self, folder: Path, volumes: Path, settle: Callable[[], None]) -> None:
        """Open both folders; what an earlier run left half-done in the first is removed, what was whole is kept.

        `settle` is called before anything is taken for checked: what became of it must be remembered by then.
        """
        self.folder = folder
        self._volumes = volumes
        self._settle = settle
        folder.mkdir(parents=True, exist_ok=True)
        volumes.mkdir(parents=True, exist_ok=True)
        self._left: dict[bytes, _Left] = {}
        self._old: list[str] = []
        for path in folder.iterdir():
            if path.name.count(".") == 2:
                name, attempts, robots = path.name.split(".")
                self._left[bytes.fromhex(name)] = _Left(Stretch(str(path)), int(attempts), robots)
            else:
                path.unlink()
        for mark in sorted(volumes.glob(f"*{_OPEN}")):
            volume = mark.with_suffix(_VOLUME)
            self._old.append(str(volume))
            for one in whole_ones(volume) if volume.is_file() else ():
                stretch = Stretch(str(volume), one.offset, one.bytes)
                self._left[one.url_hash] = _Left(stretch, one.attempts, one.robots)
        self._number = max((int(path.stem) for path in volumes.iterdir()), default=0)
        self._waiting: Counter[str] = Counter()
        self._used: set[str] = set()
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
        if self._descriptor < 0 or self._end >= VOLUME_BYTES:
            self._begin()
        header = header_of(url_hash(url), data, visit.attempts, visit.robots)
        try:
            _write(self._descriptor, header, data)
        except OSError:
            os.ftruncate(self._descriptor, self._end)
            raise
        stretch = Stretch(self._path, self._end + len(header), len(data))
        self._end = stretch.offset + len(data)
        self._waiting[self._path] += 1
        return stretch

    def find(self, url: str, visit: Visit) -> Stretch | None:
        """What an earlier run left whole of a URL, if anything; `visit` is filled in."""
        left = self._left.pop(url_hash(url), None) if self._left else None
        if left is None:
            return None
        visit.attempts, visit.robots = left.attempts, left.robots
        return left.stretch

    def release(self, path: str, stays: bool) -> None:
        """Say that a stretch of a volume, or a file of its own, was checked; `stays`: it is a picture of the volume."""
        if path in self._waiting:
            self._waiting[path] -= 1
            if stays:
                self._used.add(path)
            self._end_settled()
        elif path not in self._old:
            self._settle()
            os.unlink(path)

    def clear(self) -> None:
        """Say that nothing waits any more; what no row asks for, and volumes in which no picture stays, are removed."""
        self._settle()
        self.close()
        for left in self._left.values():
            if left.stretch.path not in self._old:
                os.unlink(left.stretch.path)
        for volume in self._old:
            _unmark(volume)
        for volume in self._waiting:
            self._finish(volume)
        self._waiting.clear()

    def close(self) -> None:
        """Close the volume that is written; what is in it stays."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _begin(self) -> None:
        self.close()
        self._number += 1
        base = f"{self._volumes}/{self._number:06d}"
        self._path, self._end = base + _VOLUME, 0
        # The mark first: a volume without one is taken for settled.
        os.close(os.open(base + _OPEN, os.O_WRONLY | os.O_CREAT, 0o666))
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o666)
        self._waiting[self._path] = 0
        self._end_settled()

    def _end_settled(self) -> None:
        done = [path for path, waiting in self._waiting.items() if not waiting and path != self._path]
        if done:
            self._settle()
        for path in done:
            self._finish(path)
            del self._waiting[path]

    def _finish(self, volume: str) -> None:
        if volume in self._used:
            self._used.remove(volume)
        else:
            os.unlink(volume)
        _unmark(volume)


def _unmark(volume: str) -> None:
    os.unlink(volume.removesuffix(_VOLUME) + _OPEN)


def _write(descriptor: int, header: bytes, data: bytes) -> None:
    written = os.writev(descriptor, (header, data))
    if written < len(header) + len(data):
        left = memoryview(header + data)[written:]
        while left:
            left = left[os.write(descriptor, left) :]
