"""What a worker does with fetched files: prove each to be a picture and put it where the ledger says."""

import errno
import fcntl
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data.images import PictureError, Room, prove_picture
from data.jobs import Checking, CheckJob
from data.ledger import Found, Lost
from data.looks import Small, look_at_all
from data.volumes import Reader

HELD_PIXELS = 4 << 20  # bytes of small pictures that wait to be looked at together
LARGE_PIXELS = 12_000_000  # decoding so many takes 50 MB; larger ones wait for each other
_NO_WAIT = nullcontext()


def check_files(checking: Checking, jobs: list[CheckJob]) -> list[Found | Lost]:
    """Check some files; the results stand in the order of the jobs."""
    done: list[Found | Lost] = []
    held, size = list[_Kept | Lost](), 0
    room = _room(checking.downloads)
    with Reader() as volumes:
        for job in jobs:
            one = _keep_file(checking, job, room, volumes)
            held.append(one)
            size += one.small.pixels.nbytes if isinstance(one, _Kept) else 0
            if size > HELD_PIXELS:
                done += _looked_at(held)
                held, size = [], 0
    return done + _looked_at(held)


def _looked_at(held: list["_Kept | Lost"]) -> list[Found | Lost]:
    looks = iter(look_at_all([one.small for one in held if isinstance(one, _Kept)]))
    done: list[Found | Lost] = []
    for one in held:
        if isinstance(one, _Kept):
            phash, look = next(looks)
            done.append(one.found(phash=phash, look=look))
        else:
            done.append(one)
    return done


@dataclass(frozen=True, slots=True)
class _Kept:
    """A proved picture that lies where the ledger will say; its bytes are not held any more."""

    found: partial[Found]
    """Still without what it looks like."""
    small: Small


def _keep_file(checking: Checking, job: CheckJob, room: Room, volumes: Reader) -> _Kept | Lost:
    mtime_ns = 0
    try:
        if job.bytes is not None:
            data = volumes.read(job.path, job.offset, job.bytes)
        else:
            with open(job.path, "rb", buffering=0, opener=_open_at_once) as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    return job.lost("not-a-file", f"{job.url[:500]} is not a plain file")
                if status.st_size > checking.max_bytes:
                    return job.lost("too-large", f"{job.url[:500]}: {status.st_size:,} bytes")
                data, mtime_ns = file.readall() or b"", status.st_mtime_ns
    except FileNotFoundError:
        return job.lost("missing-file", f"{job.url[:500]} is not there")
    except IsADirectoryError:
        return job.lost("not-a-file", f"{job.url[:500]} is not a plain file")
    except (OSError, ValueError) as error:
        what = error.strerror if isinstance(error, OSError) else str(error)
        return job.lost("unreadable-file", f"{job.url[:500]}: {what}")
    try:
        picture = prove_picture(data, checking.max_pixels, checking.rewriting, room)
    except PictureError as error:
        return job.lost(error.reason, f"{job.url[:500]}: {error.detail}")
    sha256 = hashlib.sha256(picture.data).hexdigest()
    place, offset = job.path, 0
    if job.bytes is not None and picture.data is data:
        place, offset = job.path.removeprefix(f"{checking.downloads}/"), job.offset
    elif job.ours or picture.data is not data:
        place, mtime_ns = f"pictures/{sha256[:2]}/{sha256}.{picture.format}", 0
        already = job.path if job.ours and picture.data is data else None
        _keep(os.path.join(checking.downloads, place), picture.data, already)
    found = partial(
        Found,
        url=job.url,
        place=place,
        offset=offset,
        format=picture.format,
        bytes=len(picture.data),
        sha256=sha256,
        width=picture.width,
        height=picture.height,
        mtime_ns=mtime_ns,
        asked=job.asked,
        host=job.host,
        robots=job.robots,
        attempts=job.attempts,
    )
    return _Kept(found, picture.small)


def _open_at_once(path: str, flags: int) -> int:
    """Without waiting for somebody to write into a pipe of that name."""
    return os.open(path, flags | os.O_NONBLOCK)


def _room(downloads: str) -> Room:
    """Lets one process at a time decode a large picture, so that memory does not grow with the number of workers."""

    @contextmanager
    def alone() -> Iterator[None]:
        with (Path(downloads) / "large.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    return lambda pixels: _NO_WAIT if pixels < LARGE_PIXELS else alone()


def _keep(path: str, data: bytes, already: str | None) -> None:
    """Put bytes under a name made from their hash; `already`: a file of ours that holds just these.

    Not synced, and written in place: the ledger says what they must be, and a file that a kill or a power cut left
    short is written again.
    """
    try:
        if os.stat(path).st_size == len(data):
            return
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), exist_ok=True)
    if already is not None and _linked(path, already):
        return
    with open(path, "wb", buffering=0) as file:
        left = memoryview(data)
        while left:
            left = left[file.write(left) :]


def _linked(path: str, already: str) -> bool:
    folder, name = os.path.split(path)
    beside = f"{folder}/.{name}.{os.getpid()}.part"
    try:
        os.link(already, beside)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        return False  # the file system knows no links, or a killed process left the name taken
    os.replace(beside, path)
    return True
