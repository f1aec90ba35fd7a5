"""Checked pictures where the ledger says they are: in a volume, in a file of ours, or in one that was there before."""

import hashlib
import os
from pathlib import Path

from data import volumes
from data.ledger import Found
from data.schema import UserError


class PictureChanged(UserError):
    """A picture is not any more what the ledger says."""


def unchanged(downloads: Path, picture: Found) -> bool:
    """Whether a picture still is as it was when it was checked, by its size and time."""
    path = _path(downloads, picture)
    if picture.offset:
        return volumes.holds(path, picture.offset, picture.bytes)
    try:
        status = os.stat(path)
    except OSError:
        return False
    return status.st_size == picture.bytes and picture.mtime_ns in (0, status.st_mtime_ns)


def bytes_of(downloads: Path, picture: Found, reader: volumes.Reader) -> bytes:
    """A picture, proved to be the one that was checked; `reader` reads those of volumes. Raises PictureChanged."""
    path = _path(downloads, picture)
    again = "run the same command again to look at it anew; everything else is kept"
    name = f"{picture.url} (in {path})" if picture.offset else path
    try:
        if picture.offset:
            return reader.whole(path, picture.offset, picture.bytes)
        with open(path, "rb", buffering=0) as file:
            data = file.readall() or b""
    except OSError as error:
        raise PictureChanged(f"{name}: {error.strerror}, but it was there when it was checked; {again}") from error
    except volumes.VolumeError as error:
        raise PictureChanged(f"{name} was changed after it was checked: {error}; {again}") from error
    if hashlib.sha256(data).hexdigest() != picture.sha256:
        raise PictureChanged(f"{name} was changed after it was checked; {again}")
    return data


def forget(downloads: Path, picture: Found) -> None:
    """Have a picture fetched again that is not what the ledger says; one that was read in place is left alone."""
    if picture.offset:
        volumes.forget(_path(downloads, picture), picture.offset)
    elif not os.path.isabs(picture.place):
        Path(_path(downloads, picture)).unlink(missing_ok=True)


def _path(downloads: Path, picture: Found) -> str:
    # As text: joining paths as objects takes longer than reading a small picture.
    return os.path.join(downloads, picture.place)
