"""What a worker is given to check; whoever gives it out needs no decoder."""

from dataclasses import dataclass
from typing import NamedTuple

from data.ledger import Found, Lost
from data.taking import KEEP, Rewriting


@dataclass(frozen=True, slots=True, kw_only=True)
class Checking:
    """How the files of a run are checked."""

    downloads: str
    max_pixels: int
    max_bytes: int
    rewriting: Rewriting = KEEP


class CheckJob(NamedTuple):
    """A file to be checked."""

    url: str
    """As the catalogue names it."""
    path: str
    ours: bool
    """Brought here by us, for good in a volume or in pictures/. Else it is read where it is."""
    asked: int
    """As of `Found`, as are the last ones."""
    offset: int = 0
    bytes: int | None = None
    """From there, in a volume (data/volumes.py), where it stays; None: the whole file."""
    host: str = ""
    robots: str = ""
    attempts: int = 0

    def lost(self, reason: str, detail: str) -> Lost:
        """What the ledger says if the file is not taken."""
        return Lost(
            url=self.url,
            reason=reason,
            detail=detail,
            asked=self.asked,
            host=self.host,
            robots=self.robots,
            attempts=self.attempts,
        )


def check(checking: Checking, jobs: list[CheckJob]) -> list[Found | Lost]:
    """Check some files; the results stand in the order of the jobs."""
    from data.checking import check_files  # workers have imported it, decoders and all, when they are forked

    return check_files(checking, jobs)
