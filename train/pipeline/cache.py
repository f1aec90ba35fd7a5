"""Shards from elsewhere on a disk of the node: whole files in a bounded folder that its processes share.

A file is whole or not there: it is written as `.part` under a lock of its own and renamed. Who reads one holds it open,
so that it may be taken away at any time; the one not used for longest goes first. What is in it is not trusted: each
sample is checked against its hash when it is read.
"""

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from train.pipeline.patience import Patience, describe

PIECE = 8 * 2**20
FULL = (errno.ENOSPC, errno.EDQUOT)
REST_S = 300.0
"""For which nothing is written after the disk refused."""
TOUCH_S = 60.0


class ShardCache:
    """Whole shards by name, within a number of bytes. Any number of processes may use one folder."""

    def __init__(
        self, folder: Path, limit_bytes: int, patience: Patience, dropped: Callable[[str], None] = lambda name: None
    ) -> None:
        """
        Args:
            folder: made if it is not there.
            limit_bytes: what all files together may take.
            patience: records what happens.
            dropped: told of a damaged file that was taken away.
        """
        self._dropped = dropped
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._patience = patience
        self._rests_until = 0.0
        self._touched: dict[str, float] = {}

    def open(self, name: str, size: int) -> int | None:
        """A descriptor of a shard that is here and of its size; None for none. A file cut short is taken away."""
        path = self._folder / name
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        found = os.fstat(descriptor).st_size
        if found != size:
            self.drop(name, descriptor, f"has {found:,} of {size:,} bytes")
            os.close(descriptor)
            return None
        self.used(name)
        return descriptor

    def used(self, name: str) -> None:
        """Note that a shard is in use, so that others go before it."""
        now = time.monotonic()
        if now - self._touched.get(name, -TOUCH_S) >= TOUCH_S:
            self._touched[name] = now
            # Taken away meanwhile, or on a disk that cannot be written: then there is nothing to note.
            with self._refusals(name):
                os.utime(self._folder / name)

    def drop(self, name: str, descriptor: int, why: str) -> None:
        """Take a damaged file away, unless another one has taken its place already."""
        with self._refusals(name):
            if os.path.samestat(os.stat(self._folder / name), os.fstat(descriptor)):
                (self._folder / name).unlink()
        self._patience.note("cache", str(self._folder / name), f"{why}; taken away, to be fetched again")
        self._dropped(name)

    def fill(self, name: str, size: int, piece: Callable[[int, int], bytes]) -> bool:
        """Fetch a shard, unless it is here or another process is at it.

        Args:
            piece: gives bytes [start, end) of the shard.
        Returns:
            Whether the shard is here now.
        Raises:
            What `piece` raises.
        """
        path = self._folder / name
        if time.monotonic() < self._rests_until or size > self._limit_bytes:
            return path.exists()
        with self._refusals(name):
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._lock(f"{name}.lock", wait=False) as ours:
                if not ours or path.exists():
                    return path.exists()
                self._write(path, size, piece)
        return path.exists()

    def _write(self, path: Path, size: int, piece: Callable[[int, int], bytes]) -> None:
        part = path.with_suffix(".part")
        try:
            with self._lock("lock", wait=True):
                if not self._make_room(size):
                    return
                descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
                # Taken at once, so that it counts and a full disk shows before anything is fetched.
                try:
                    os.posix_fallocate(descriptor, 0, size)
                except BaseException:
                    os.close(descriptor)
                    raise
            with open(descriptor, "r+b") as stream:
                for start in range(0, size, PIECE):
                    stream.write(piece(start, min(start + PIECE, size)))
                if stream.tell() != size:
                    return
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

    def _make_room(self, size: int) -> bool:
        """Take away what was not used for longest until `size` more bytes fit."""
        files = []
        for path in self._folder.iterdir():
            if path.suffix in (".tar", ".part"):
                with self._gone():
                    status = path.stat()
                    files.append((status.st_mtime, status.st_size, path))
        taken = sum(one for _, one, _ in files)
        for _, one, path in sorted(files):
            if taken + size <= self._limit_bytes:
                break
            if path.suffix == ".tar":
                with self._gone():
                    path.unlink()
                taken -= one
        return taken + size <= self._limit_bytes

    @contextmanager
    def _lock(self, name: str, wait: bool) -> Iterator[bool]:
        """Whether the lock is ours within the block; it goes with this process at the latest."""
        descriptor = os.open(self._folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                ours = True
            except BlockingIOError:
                ours = False
            yield ours
        finally:
            os.close(descriptor)

    @contextmanager
    def _refusals(self, name: str) -> Iterator[None]:
        """Go on without the cache for a while where its disk refuses; reading needs it not."""
        try:
            yield
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno not in (*FULL, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO):
                raise
            self._rests_until = time.monotonic() + REST_S
            what = f"{describe(error)}; nothing is put into the cache for {REST_S:.0f} s, shards are read without it"
            self._patience.note("cache", str(self._folder / name), what)

    @contextmanager
    def _gone(self) -> Iterator[None]:
        """Another process may take the same file away."""
        try:
            yield
        except FileNotFoundError:
            return
