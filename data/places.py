"""Files and folders here or far away: a path, or a URL that fsspec knows (s3://, gs://, memory://, …)."""

import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from data.schema import UserError

MAX_DEPTH = 32  # folders within each other; more is a link that leads back


class PlaceError(UserError):
    """A file or folder that cannot be reached."""


def is_remote(where: str) -> bool:
    """Whether a place is a URL, not a path of this machine."""
    return "://" in where


def parent(where: str) -> str:
    """The folder that a file or folder stands in."""
    return posixpath.dirname(where.rstrip("/")) if is_remote(where) else str(Path(where).parent)


def join(folder: str, *names: str) -> str:
    """A place within a folder."""
    return posixpath.join(folder, *names) if is_remote(folder) else str(Path(folder, *names))


@contextmanager
def reaching(where: str) -> Iterator[None]:
    """Name the place when a file system of somebody else's fails: each raises classes of its own.

    Raises PlaceError; FileNotFoundError goes through, and so does everything for a path of this machine.
    """
    try:
        yield
    except (FileNotFoundError, UserError):
        raise
    except ImportError as error:
        raise PlaceError(f"{where}: {error} (pip install '.[s3]' brings what s3:// needs)") from error
    except ValueError as error:
        raise PlaceError(f"{where}: {error}") from error
    except Exception as error:
        if not is_remote(where):
            raise
        raise PlaceError(
            f"{where}: {type(error).__name__}: {error}; check the address, the access, the network"
        ) from error


def file_system(where: str) -> tuple[Any, str]:
    """The fsspec file system of a place, and the place's path in it. Raises PlaceError."""
    import fsspec

    with reaching(where):
        return cast(tuple[Any, str], fsspec.core.url_to_fs(where))


def open_binary(where: str, compression: str | None = None) -> BinaryIO:
    """A stream of a file's bytes; `compression="infer"` unpacks by the name's end. Raises PlaceError, OSError."""
    if not is_remote(where) and compression is None:
        return open(where, "rb")
    import fsspec

    with reaching(where):
        return cast(BinaryIO, fsspec.open(where, "rb", compression=compression).open())


def is_file(where: str) -> bool:
    """Whether there is such a file. Raises PlaceError."""
    if not is_remote(where):
        return Path(where).is_file()
    system, path = file_system(where)
    with reaching(where):
        return bool(system.isfile(path))


def is_folder(where: str) -> bool:
    """Whether there is such a folder. Raises PlaceError."""
    if not is_remote(where):
        return Path(where).is_dir()
    system, path = file_system(where)
    with reaching(where):
        return bool(system.isdir(path))


def list_folder(where: str) -> tuple[list[str], list[str]]:
    """The names of the files and of the folders directly in a folder, each in order. Raises PlaceError, OSError."""
    if not is_remote(where):
        found = sorted(Path(where).iterdir())
        return [one.name for one in found if one.is_file()], [one.name for one in found if one.is_dir()]
    system, path = file_system(where)
    with reaching(where):
        listed = sorted(system.ls(path, detail=True), key=lambda one: str(one["name"]))
    names: dict[str, list[str]] = {"file": [], "directory": []}
    for one in listed:
        name = posixpath.basename(one["name"].rstrip("/"))
        if one["name"].rstrip("/") != path.rstrip("/"):  # an object store lists the folder's own marker
            names.get(one["type"], []).append(name)
    return names["file"], names["directory"]


def walk(where: str, inside: str = "", depth: int = 0) -> Iterator[tuple[str, list[str]]]:
    """A folder and all below it in a fixed order: each as its path within (empty for itself) and its files' names.

    A folder at a time is held; hidden files and folders are left out. Raises PlaceError, OSError.
    """
    files, folders = list_folder(join(where, inside) if inside else where)
    yield inside, [name for name in files if not name.startswith(".")]
    for folder in folders:
        if not folder.startswith(".") and depth < MAX_DEPTH:
            yield from walk(where, f"{inside}/{folder}".lstrip("/"), depth + 1)


def glob(pattern: str) -> list[str]:
    """The files that a pattern with *, ** or ? names, in order. Raises PlaceError."""
    system, path = file_system(pattern)
    with reaching(pattern):
        found = sorted(str(one) for one in system.glob(path) if system.isfile(one))
        return [system.unstrip_protocol(one) if is_remote(pattern) else one for one in found]


def copy_here(url: str, path: Path, max_bytes: int) -> int:
    """Copy a far file to a path of this machine; reading stops behind `max_bytes`. Returns the bytes that were read.

    Raises PlaceError, FileNotFoundError.
    """
    taken = 0
    with open_binary(url) as source, path.open("wb") as target, reaching(url):
        while taken <= max_bytes and (piece := source.read(1 << 20)):
            target.write(piece)
            taken += len(piece)
    return taken
