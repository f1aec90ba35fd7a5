"""What a worker does with fetched files: prove each to be a picture and put it where the ledger says."""

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from data.images import KEEP, PictureError, Rewriting, Room, check_picture
from data.ledger import Found

LARGE_PIXELS = 12_000_000  # decoding so many takes 50 MB; larger ones wait for each other


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckJob:
    """A file to be checked."""

    url: str
    """As the catalogue names it."""
    path: str
    ours: bool
    """Brought here by us: also kept in pictures/. Else it is read where it is."""
    downloads: str
    attempts: int
    max_pixels: int
    max_bytes: int
    rewriting: Rewriting = KEEP


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A picture that is not taken, and why."""

    reason: str
    detail: str


def check_files(jobs: list[CheckJob]) -> list[Found | Failure]:
    """Check some files; the results stand in the order of the jobs."""
    return [_check_file(job) for job in jobs]


def _check_file(job: CheckJob) -> Found | Failure:
    try:
        status = os.stat(job.path)
        if not stat.S_ISREG(status.st_mode):
            return Failure(reason="not-a-file", detail=f"{job.url[:500]} is not a plain file")
        if status.st_size > job.max_bytes:
            return Failure(reason="too-large", detail=f"{job.url[:500]}: {status.st_size:,} bytes")
        data = Path(job.path).read_bytes()
    except FileNotFoundError:
        return Failure(reason="missing-file", detail=f"{job.url[:500]} is not there")
    except (OSError, ValueError) as error:
        what = error.strerror if isinstance(error, OSError) else str(error)
        return Failure(reason="unreadable-file", detail=f"{job.url[:500]}: {what}")
    try:
        picture = check_picture(data, job.max_pixels, job.rewriting, _room(job.downloads))
    except PictureError as error:
        return Failure(reason=error.reason, detail=f"{job.url[:500]}: {error.detail}")
    place, mtime_ns = job.path, status.st_mtime_ns
    if job.ours or picture.data is not data:
        place, mtime_ns = f"pictures/{picture.sha256[:2]}/{picture.sha256}.{picture.format}", 0
        _keep(Path(job.downloads) / place, picture.data, Path(job.path) if job.ours and picture.data is data else None)
    return Found(
        url=job.url,
        place=place,
        format=picture.format,
        bytes=len(picture.data),
        sha256=picture.sha256,
        phash=picture.phash,
        look=picture.look,
        width=picture.width,
        height=picture.height,
        mtime_ns=mtime_ns,
        attempts=job.attempts,
    )


def _room(downloads: str) -> Room:
    """Lets one process at a time decode a large picture, so that memory does not grow with the number of workers."""

    @contextmanager
    def room(pixels: int) -> Iterator[None]:
        if pixels < LARGE_PIXELS:
            yield
            return
        with (Path(downloads) / "large.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    return room


def _keep(path: Path, data: bytes, already: Path | None) -> None:
    """Put bytes under a name made from their hash; `already`: a file of ours that holds just these.

    Not synced: the ledger says what they must be, and a file that a power cut emptied is fetched again.
    """
    if path.is_file() and path.stat().st_size == len(data):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        if already is None:
            beside.write_bytes(data)
        else:
            beside.hardlink_to(already)
    except OSError as error:
        if already is None or error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        beside.write_bytes(data)  # the file system knows no links, or a killed process left the name taken
    os.replace(beside, path)
