"""What happens while data are read that a person should know of, beside bad samples: said at once, and recorded."""

import sys
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that was mended or sat out, so that training goes on."""

    event: str
    """worker: a process was started again. shard, remote: reading failed for a while. cache: a file of the cache was
    damaged, or the cache could not be written."""
    where: str
    """The process, file or address."""
    what: str
    """What happened, and what was done about it."""


def say(text: str) -> None:
    """Tell whoever watches, from any process of a job, in one piece."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
