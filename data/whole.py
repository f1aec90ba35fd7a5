"""Files that are whole or not there: written beside their place, synced, renamed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(path: Path, cached: bool = True, lasting: bool = True) -> Iterator[BinaryIO]:
    """A stream whose bytes stand at `path` once the block ends well; if it does not, nothing changes there.

    Unless `cached`, they take no memory that other files' bytes could be kept in, as nobody reads them soon. Unless
    `lasting`, a power cut may bring back what was there before, until somebody syncs the folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with beside.open("w+b") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
            if not cached:
                _uncache(stream)
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    if lasting:
        sync(path.parent)


def send_out(stream: BinaryIO) -> None:
    """Have the disk begin with what was written so far to a stream of `whole_file` that is not to be cached."""
    stream.flush()
    _uncache(stream)


def _uncache(stream: BinaryIO) -> None:
    # Linux starts to write what is not on the disk yet, waits for nothing, and lets go what is.
    os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def write_whole(path: Path, data: bytes) -> None:
    """Write a small file whole or not at all."""
    with whole_file(path) as stream:
        stream.write(data)


def sync(path: Path) -> None:
    """Have the disk hold what a file, or the names in a folder, are now: a rename then outlives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left half-written directly in `folder`."""
    for leftover in folder.glob(".*.part"):
        leftover.unlink(missing_ok=True)
