"""What a picture column's value means: a file here, a URL, or the bytes themselves."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.checking import Failure
from data.mapping import MISSING


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
class Inside:
    """A picture whose bytes the catalogue holds."""

    name: str
    data: bytes


def locate(value: Any, image_root: Path) -> Local | Remote | Inside | Failure:
    """Where a picture's bytes are.

    Arguments: the column's value: text, bytes, or {"bytes", "path"} as data sets have it; the folder that relative
    paths start from and that none may leave.
    Returns a Failure (no-picture | bad-url | outside-root | bad-value) for what leads nowhere.
    """
    if isinstance(value, dict):
        data, name = value.get("bytes"), value.get("path")
        if isinstance(data, bytes):
            return Inside(str(name or ""), data)
        if isinstance(name, str) and os.path.isabs(name):
            return Local(os.path.basename(name), name)  # the library's own cache, not a path that a catalogue chose
        value = name
    if isinstance(value, bytes):
        return Inside("", value)
    if value is None or (isinstance(value, str) and value.strip() in MISSING):
        return Failure(reason="no-picture", detail="the row names no picture")
    if not isinstance(value, str):
        return Failure(reason="bad-value", detail=f"a {type(value).__name__} names no picture")
    name = value.strip()
    if name.lower().startswith(("http://", "https://")):
        return Remote(name)
    if "://" in name:
        return Failure(reason="bad-url", detail=f"{name[:500]}: only http and https are fetched")
    root = str(image_root)
    path = os.path.normpath(os.path.join(root, name))
    if os.path.commonpath([root, path]) != root:
        return Failure(reason="outside-root", detail=f"{name[:500]} leads out of the pictures' folder")
    return Local(name, path)
