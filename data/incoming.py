"""Downloads that wait to be checked: files named by their URL, so that a fetch that was killed finds them again."""

import os
from pathlib import Path

import xxhash

from data.asking import Visit


class Incoming:
    """The folder of what has arrived and is not checked yet."""

    def __init__(self, folder: Path) -> None:
        """Open the folder; what an earlier run left half-done in it is removed, what was whole is kept."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._left: dict[str, Path] = {}
        for path in folder.iterdir():
            if path.name.count(".") == 2:
                self._left[path.name.partition(".")[0]] = path
            else:
                path.unlink()

    def beside(self, url: str) -> str:
        """Where a URL's bytes are written as they come."""
        return f"{self.folder}/{_name(url)}.part"

    def keep(self, url: str, visit: Visit) -> str:
        """Declare what lies at `beside` whole; returns where it is now."""
        path = f"{self.folder}/{_name(url)}.{visit.attempts}.{visit.robots}"
        os.rename(self.beside(url), path)
        return path

    def find(self, url: str, visit: Visit) -> str | None:
        """What an earlier run left whole of a URL, if anything; `visit` is filled in."""
        if not self._left:
            return None
        path = self._left.pop(_name(url), None)
        if path is None:
            return None
        _, attempts, visit.robots = path.name.split(".")
        visit.attempts = int(attempts)
        return str(path)

    def clear(self) -> None:
        """Remove what no row asks for any more."""
        for path in self._left.values():
            path.unlink(missing_ok=True)


def _name(url: str) -> str:
    return xxhash.xxh3_128_hexdigest(url.encode("utf-8", "surrogatepass"))
