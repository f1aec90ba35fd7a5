"""What a picture's value in a row means: a file here or far away, a URL, or the bytes themselves."""

import os
from dataclasses import dataclass
from typing import Any

from data.places import is_remote
from data.rules import is_missing

_WEB = ("http://", "https://")


@dataclass(frozen=True, slots=True)
class Local:
    """A file that is read where it is."""

    name: str
    """As the catalogue has it."""
    path: str


@dataclass(frozen=True, slots=True)
class Remote:
    """A picture to download."""

    url: str


@dataclass(frozen=True, slots=True)
class Stored:
    """A picture in an object store or another file system that fsspec knows."""

    name: str
    """As the catalogue has it."""
    url: str


@dataclass(frozen=True, slots=True)
class Inside:
    """A picture whose bytes the catalogue holds."""

    name: str
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Nowhere:
    """A value that leads to no picture, and why."""

    reason: str
    """The class it is counted under."""
    detail: str


Place = Local | Remote | Stored | Inside | Nowhere


def locate(value: Any, image_root: str) -> Place:
    """Where a picture's bytes are.

    Arguments: what the row has for it: text, bytes, or {"bytes", "path"} as data sets have it; the folder or URL that
    relative paths start from and that none may leave.
    Returns Nowhere (no-picture | bad-url | outside-root | bad-value) for what leads nowhere.
    """
    if isinstance(value, dict):
        data, name = value.get("bytes"), value.get("path")
        if isinstance(data, bytes):
            return Inside(str(name or ""), data)
        value = name
    if isinstance(value, bytes):
        return Inside("", value)
    if is_missing(value):
        return Nowhere(reason="no-picture", detail="the row names no picture")
    if not isinstance(value, str):
        return Nowhere(reason="bad-value", detail=f"a {type(value).__name__} names no picture")
    name = value.strip()
    if name.lower().startswith(_WEB):
        return Remote(name)
    if is_remote(image_root) or is_remote(name):
        return _far(name, image_root)
    path = _within(name, image_root)
    if path is None:
        return Nowhere(reason="outside-root", detail=f"{name[:500]} leads out of the pictures' folder")
    return Local(name, path)


def _within(name: str, root: str) -> str | None:
    path = os.path.normpath(os.path.join(root, name))
    return path if os.path.commonpath([root, path]) == root else None


def _far(name: str, root: str) -> Place:
    """A picture below a root that is a URL; a full URL is taken if the root is one of the same store."""
    store, _, folder = root.rstrip("/").rpartition("://")
    kind, _, path = name.rpartition("://")
    if kind and kind != store:
        return Nowhere(
            reason="bad-url", detail=f"{name[:500]}: only http and https are fetched, and what --image-root's store has"
        )
    found = _within("/" + path if kind else path.lstrip("/"), "/" if kind else "/" + folder)
    if found is None:
        return Nowhere(reason="outside-root", detail=f"{name[:500]} leads out of the pictures' folder")
    url = f"{store}://{found.lstrip('/')}"
    return Remote(url) if store in ("http", "https") else Stored(name, url)


def without_bytes(value: Any) -> Any:
    """A value as the ledger keeps it: a picture's bytes lie in downloads/, its name stays.

    One without a name becomes {"path": None}, so that it still counts as a picture.
    """
    if isinstance(value, bytes):
        return {"path": None}
    if isinstance(value, dict):
        if isinstance(value.get("bytes"), bytes):
            return value["path"] if value.get("path") else {"path": None}
        return {name: without_bytes(one) for name, one in value.items()}
    if isinstance(value, list):
        return [without_bytes(one) for one in value]
    return value
