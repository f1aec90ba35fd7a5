"""The classes under which downloads fail, and what a person can do about each."""

from collections import Counter
from collections.abc import Mapping

# Class → what helps. The classes of pictures that arrived but are none (truncated, not-a-picture, …) have no remedy.
REMEDIES = {
    "bad-url": "mend these URLs in the catalogue",
    "dns": "check the names and the network, then --retry dns",
    "refused-address": "--allow-host HOST lets a host of one's own network be asked",
    "robots": "--no-robots goes against the wish of the sites: ask them first",
    "robots-unreachable": "--retry robots-unreachable later, or --no-robots",
    "noai": "--no-robots goes against the wish of the sites: ask them first",
    "forbidden": "ask the sites for access, or fetch the files by other means and name them by --image-root",
    "not-found": "these URLs are dead: mend the catalogue",
    "too-many-requests": "--per-host-rate N asks more slowly, with --retry 429",
    "server-error": "--retry 5xx later",
    "http-error": "",
    "redirects": "",
    "timeout": "check the network, then --retry timeout; --timeout allows more",
    "connection": "check the network, then --retry connection",
    "gave-up": "--retry gave-up once the host answers again",
    "too-large": "--max-picture-mb allows more, with --retry too-large",
    "packed": "",
    "not-a-picture": "",
}
_NUMBERS = {
    "401": "forbidden",
    "403": "forbidden",
    "404": "not-found",
    "410": "not-found",
    "429": "too-many-requests",
    "5xx": "server-error",
}


class DownloadError(Exception):
    """A URL that gave no picture's bytes; `reason` is the class it is counted under."""

    def __init__(self, reason: str, detail: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail
        self.retry_after_s = retry_after_s
        """Not None: worth another attempt, after at least so long."""


def failure_classes(text: str) -> frozenset[str]:
    """The classes that a person lists, by name or by HTTP status: "dns,429,timeout". Raises ValueError."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    classes = {_NUMBERS.get(name, name) for name in names}
    unknown = sorted(classes - set(REMEDIES))
    if unknown or not names:
        raise ValueError(f"{', '.join(unknown) or 'nothing'} is no class of failure; they are {', '.join(REMEDIES)}")
    return frozenset(classes)


def counted(classes: Mapping[str, int]) -> str:
    """Classes with their counts, most frequent first."""
    return ", ".join(f"{count:,} {reason}" for reason, count in Counter(classes).most_common())


def remedies(classes: Mapping[str, int]) -> str:
    """What helps against the classes that occurred, most frequent first; empty if nothing is known."""
    found = dict.fromkeys(REMEDIES.get(reason, "") for reason, _ in Counter(classes).most_common())
    return "; ".join(remedy for remedy in found if remedy)
