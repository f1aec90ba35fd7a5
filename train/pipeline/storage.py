"""How the bytes of shards are had: what every kind of storage does, and shards in a folder of this machine."""

import errno
import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from data.index import IndexEntry
from train.pipeline.patience import Patience, ReadError, describe

# The disk itself fails, at one place: that sample is lost, and waiting does not bring it back.
BROKEN = (errno.EIO, errno.EUCLEAN)
BROKEN_TRIES = 3
# Nothing that time mends.
LASTING = (errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.EMFILE, errno.ENFILE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """How shards are read, beside where they are."""

    patience_s: float = 1200.0
    """How long storage may fail on end."""
    first_pause_s: float = 0.5
    """Before the second try."""
    cache: str | None = None
    """Folder for shards that are elsewhere; none: one beside other temporary files."""
    cache_bytes: int = 50 * 2**30
    """What that folder may take."""
    node_share: float = 1.0
    """What part of each batch the ranks of this node read."""


class Gone(Exception):
    """The shard is not there any more, and the folder it was in is."""


class Shards(Protocol):
    """The bytes of a set's shards, by the shards' names."""

    def expect(self, entries: Sequence[tuple[str, IndexEntry]]) -> None:
        """Told what will be read next, so that it may be had in the meantime."""

    def read(self, name: str, entry: IndexEntry) -> bytes:
        """A sample's bytes, fewer where the shard ends before; raises Gone and ReadError."""

    def read_again(self, name: str, entry: IndexEntry) -> bytes | None:
        """The same from where a first reading's damage cannot be; None where there is no such place."""

    def prefetch(self, names: Sequence[str]) -> None:
        """Told which shards will be read later, in their order."""

    @property
    def waited_s(self) -> float:
        """Seconds spent waiting for other machines."""

    def close(self) -> None: ...


class LocalShards:
    """Shards in a folder of a disk or a network file system, a bounded number of them open at a time."""

    def __init__(self, folder: Path, patience: Patience, max_open: int) -> None:
        self._folder = folder
        self._patience = patience
        self._max_open = max_open
        self._open: OrderedDict[str, int] = OrderedDict()
        self.waited_s = 0.0

    def expect(self, entries: Sequence[tuple[str, IndexEntry]]) -> None:
        """Have the system read ahead what comes next, in the order of the disk; only a hint, so failures wait."""
        for name, entry in sorted(entries, key=lambda one: (one[0], one[1].offset)):
            try:
                os.posix_fadvise(self._descriptor(name), entry.offset, entry.length, os.POSIX_FADV_WILLNEED)
            except OSError:
                return

    def read(self, name: str, entry: IndexEntry) -> bytes:
        path = self._folder / name
        broken = 0

        def passes(error: Exception) -> bool:
            nonlocal broken
            if not isinstance(error, OSError) or error.errno in LASTING:
                return False
            if isinstance(error, FileNotFoundError):
                # A file system that went away altogether may come back; one file that did will not.
                return not (self._folder / "index.arrow").exists()
            if error.errno in BROKEN:
                broken += 1
                return broken < BROKEN_TRIES
            return True

        try:
            return self._patience.call(lambda: self._pread(name, entry), kind="shard", where=str(path), passes=passes)
        except FileNotFoundError as error:
            raise Gone("the shard is gone") from error
        except OSError as error:
            if error.errno in BROKEN:
                raise Gone(f"the disk cannot read it ({describe(error)})") from error
            raise ReadError(f"{path}: {describe(error)}; mend that, then start the run again, it goes on") from error

    def read_again(self, name: str, entry: IndexEntry) -> bytes | None:
        return None

    def prefetch(self, names: Sequence[str]) -> None:
        pass

    def _pread(self, name: str, entry: IndexEntry) -> bytes:
        try:
            descriptor = self._descriptor(name)
            return read_range(descriptor, entry.length, entry.offset)
        except OSError:
            self._close(name)  # a handle that the server forgot stays forgotten
            raise

    def _descriptor(self, name: str) -> int:
        if name in self._open:
            self._open.move_to_end(name)
        else:
            if len(self._open) >= self._max_open:
                os.close(self._open.popitem(last=False)[1])
            self._open[name] = os.open(self._folder / name, os.O_RDONLY | os.O_CLOEXEC)
        return self._open[name]

    def _close(self, name: str) -> None:
        if name in self._open:
            os.close(self._open.pop(name))

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])


def read_range(descriptor: int, size: int, at: int) -> bytes:
    """Bytes [at, at + size) of a file, fewer at its end."""
    content = os.pread(descriptor, size, at)
    while 0 < len(content) < size:
        more = os.pread(descriptor, size - len(content), at + len(content))
        if not more:
            break
        content += more
    return content
