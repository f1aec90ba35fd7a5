"""One log a rank, and what each rank ended with, so that the first error of all can be shown before its echoes.

A run's folder has `logs/rank-00003.log`, what that rank printed in all its starts, and for the newest start
`logs/rank-00003.json`: where it ran, and how it ended. A rank that was killed leaves no ending there. No torch.
"""

import json
import os
import re
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from data.schema import UserError
from data.whole import write_whole
from train.distributed import Place

Ending = Literal["", "well", "mendable", "fault", "lost"]
# What gloo and NCCL say when the other side of a connection is gone.
LOST = re.compile(r"Connection (closed|reset) by peer|Broken pipe|Socket closed|remote process exited", re.IGNORECASE)
# An error of a rank's own tells more than a silent end, and that more than the loss of another rank.
ORDER = {"mendable": 0, "fault": 0, "": 1, "lost": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class RankEnd:
    """How a rank's newest start went."""

    rank: int
    host: str
    process: int
    ending: Ending = ""
    """Empty while it runs, and for good where it was killed; lost: another rank was gone."""
    at: float = 0.0
    """When it ended, seconds since 1970 on its node's clock."""
    text: str = ""

    def line(self) -> str:
        """For a person."""
        text = self.text or "ended without a word: killed, perhaps for memory, or its node is gone"
        return f"rank {self.rank} on {self.host}: {text}"


def ending_of(error: BaseException) -> Ending:
    """What kind of an end an error is."""
    if isinstance(error, UserError):
        return "mendable"
    return "lost" if LOST.search(str(error)) else "fault"


class RankLog:
    """This rank's log and ending. What cannot be written is told once, and training goes on."""

    def __init__(self, run: Path, place: Place) -> None:
        self._folder = run / "logs"
        self._end = RankEnd(rank=place.rank, host=socket.gethostname(), process=os.getpid())
        self._ranks = place.world_size

    def _path(self, rank: int, suffix: str) -> Path:
        return self._folder / f"rank-{rank:05d}{suffix}"

    def start(self) -> None:
        """Begin the record of this start, and with several ranks copy all that is printed into the log."""
        try:
            self._write()
            if self._end.rank == 0:
                # Of an earlier start on more ranks.
                for path in self._folder.glob("rank-*.json"):
                    if int(path.stem.partition("-")[2]) >= self._ranks:
                        path.unlink(missing_ok=True)
            if self._ranks > 1:
                log = self._path(self._end.rank, ".log")
                with log.open("a") as file:
                    job = os.environ.get("SLURM_JOB_ID")
                    file.write(
                        f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} rank {self._end.rank} of {self._ranks} on "
                        f"{self._end.host}, process {self._end.process}{f', job {job}' if job else ''}\n"
                    )
                for stream in (sys.stdout, sys.stderr):
                    copy_stream(stream.fileno(), log)
        except OSError as error:
            print(f"{self._folder} cannot be written ({error.strerror}): no log of each rank", flush=True)

    def finish(self, ending: Ending, text: str = "") -> None:
        """Note how this start ended."""
        self._end = RankEnd(**(asdict(self._end) | {"ending": ending, "text": text, "at": time.time()}))
        with suppress(OSError):  # was told at the start, or the run's own files say it
            self._write()

    def note(self, text: str) -> None:
        """Put into the log of one of several ranks what it does not print."""
        if self._ranks > 1:
            with suppress(OSError), self._path(self._end.rank, ".log").open("a") as file:
                file.write(text)

    def _write(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        write_whole(self._path(self._end.rank, ".json"), (json.dumps(asdict(self._end)) + "\n").encode())


def copy_stream(descriptor: int, log: Path) -> None:
    """Have what is written to a stream go on where it went, and into `log` too; a terminal stays as it is."""
    if os.isatty(descriptor):
        return
    read, write = os.pipe()
    # In the background of a shell, so that no launcher ends it with its rank, and deaf to signals that are meant for
    # the rank: it ends when the last one who writes does.
    # (What a shell starts in the background has no standard input but what is given to it.)
    copying = 'trap "" TERM INT HUP USR1; exec 3<&0; tee -a "$0" <&3 3<&- &'
    subprocess.run(
        ["sh", "-c", copying, str(log)],
        stdin=read,
        stdout=descriptor,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        check=True,
    )
    os.dup2(write, descriptor)
    os.close(read)
    os.close(write)


def read_ends(run: Path) -> list[RankEnd]:
    """How the newest start of each rank went."""
    return [RankEnd(**json.loads(path.read_text())) for path in sorted((run / "logs").glob("rank-*.json"))]


def first_error(ends: list[RankEnd]) -> RankEnd | None:
    """The rank that failed, not those that ended because it did; None where none did.

    Its own error comes before a silent end, and a silent end before the loss of another rank; the earliest of a kind.
    """
    failed = [end for end in ends if end.ending != "well"]
    return min(failed, key=lambda end: (ORDER[end.ending], end.at, end.rank), default=None)


def error_lines(ends: list[RankEnd], alive: bool = False) -> list[str]:
    """What to show of a start that failed, the first error first; `alive`: ranks without an ending still run."""
    ends = [end for end in ends if end.ending or not alive]
    first = first_error(ends)
    if first is None:
        return []
    others = [end for end in ends if end.ending not in ("well",) and end.rank != first.rank]
    if not others:
        return [f"first error: {first.line()}"]
    ranks = ", ".join(str(end.rank) for end in others[:8])
    return [
        f"first error: {first.line()}",
        f"after it: {len(others)} more (ranks {ranks}{', …' if others[8:] else ''})",
    ]
