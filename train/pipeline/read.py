"""Samples by their index entries: range reads from the shards, each checked against its hash."""

import errno
import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from data.index import IndexEntry
from data.schema import Sample
from data.shards import ShardError, parse_sample
from train.pipeline.corpus import Corpus
from train.pipeline.events import Event
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
    """Folder for shards that are elsewhere; needed for those alone."""
    cache_bytes: int = 0
    """What the cache may take."""


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

    def close(self) -> None: ...


class LocalShards:
    """Shards in a folder of a disk or a network file system, a bounded number of them open at a time."""

    def __init__(self, folder: Path, patience: Patience, max_open: int) -> None:
        self._folder = folder
        self._patience = patience
        self._max_open = max_open
        self._open: OrderedDict[str, int] = OrderedDict()

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


class ShardReader:
    """Reads samples of a corpus."""

    def __init__(self, corpus: Corpus, max_open: int = 64, storage: Storage | None = None) -> None:
        """
        Args:
            corpus: where each sample lies.
            max_open: shards kept open; the one not used for longest is closed first.
            storage: how to read; None for shards on this machine.
        """
        storage = storage or Storage()
        self._corpus = corpus
        self._patience = Patience(storage.patience_s, storage.first_pause_s)
        self._sets: list[Shards] = [LocalShards(one.folder, self._patience, max_open) for one in corpus.sets]
        self._set_of = [place for place, one in enumerate(corpus.sets) for _ in one.shard_names]
        self.remote_s = 0.0
        """Seconds spent waiting for other machines."""

    def expect(self, entries: Sequence[IndexEntry]) -> None:
        """Tell what will be read next."""
        for place, shards in enumerate(self._sets):
            own = [entry for entry in entries if self._set_of[entry.shard] == place]
            shards.expect([(self._corpus.shard_paths[entry.shard].name, entry) for entry in own])

    def read(self, entry: IndexEntry) -> tuple[Sample, list[bytes]]:
        """One sample: what it says and its pictures as stored.

        Args:
            entry: as the corpus gives it.
        Raises:
            ShardError: its bytes are not those that were written, or not a sample, or are not there.
            ReadError: the shards cannot be read at all.
        """
        path = self._corpus.shard_paths[entry.shard]
        shards = self._sets[self._set_of[entry.shard]]
        try:
            content = shards.read(path.name, entry)
            try:
                return parse_sample(content, entry, path)
            except ShardError:
                again = shards.read_again(path.name, entry)
                if again is None:
                    raise
            return parse_sample(again, entry, path)
        except Gone as error:
            raise ShardError(path, entry.key, entry.offset, str(error)) from error

    def take_events(self) -> list[Event]:
        """What happened since the last call that a person should know of."""
        return self._patience.take_events()

    def close(self) -> None:
        """Close all shards."""
        for shards in self._sets:
            shards.close()
