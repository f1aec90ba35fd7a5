"""The log of each rank, and which of their errors is shown first."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from train.distributed import Place
from train.rank_log import RankEnd, RankLog, error_lines, first_error, read_ends

PRINTS = """
import os, sys, time
from pathlib import Path
from train.distributed import Place
from train.rank_log import RankLog
log = RankLog(Path(sys.argv[1]), Place(rank=1, local_rank=1, world_size=2, local_world_size=2))
log.start()
print("a line", flush=True)
print("an error", file=sys.stderr, flush=True)
os.system("echo of a program of its own")
log.finish("well")
if len(sys.argv) > 2: os.kill(os.getpid(), 9)
"""


def ended(rank: int, ending: str, at: float = 0.0, text: str = "") -> RankEnd:
    return RankEnd(rank=rank, host=f"node{rank}", process=1, ending=ending, at=at, text=text)  # type: ignore[arg-type]


def printed(run: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """A process that prints as a rank of two does."""
    command = [sys.executable, "-c", PRINTS, str(run), *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_what_a_rank_prints_goes_on_and_stands_in_its_log(tmp_path: Path) -> None:
    done = printed(tmp_path)
    assert done.stdout.splitlines() == ["a line", "of a program of its own"]
    assert done.stderr.splitlines() == ["an error"]
    head, *lines = (tmp_path / "logs/rank-00001.log").read_text().splitlines()
    assert head.startswith("--- ")
    assert sorted(lines) == ["a line", "an error", "of a program of its own"]
    assert read_ends(tmp_path)[0].ending == "well"


def test_a_killed_rank_has_its_last_lines_in_the_log(tmp_path: Path) -> None:
    assert printed(tmp_path, "kill").returncode == -signal.SIGKILL
    until = time.monotonic() + 10
    while "an error" not in (tmp_path / "logs/rank-00001.log").read_text() and time.monotonic() < until:
        time.sleep(0.05)
    assert "of a program of its own" in (tmp_path / "logs/rank-00001.log").read_text()


def test_what_a_rank_does_not_print_can_stand_in_its_log(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    RankLog(tmp_path, Place(rank=1, local_rank=1, world_size=2, local_world_size=2)).note("Traceback …\n")
    assert (tmp_path / "logs/rank-00001.log").read_text() == "Traceback …\n"


def test_the_rank_that_failed_is_shown_before_those_that_ended_because_of_it() -> None:
    lost = [ended(0, "lost", 3.0, "gone"), ended(2, "lost", 1.0, "gone")]
    assert first_error([*lost, ended(1, "fault", 2.0, "ValueError: no")]) == ended(1, "fault", 2.0, "ValueError: no")
    assert first_error([*lost, ended(1, "")]) == ended(1, "")
    assert first_error([ended(0, "well"), ended(1, "well")]) is None
    first, after = error_lines([*lost, ended(1, "")])
    assert first == (
        "first error: rank 1 on node1: ended without a word: killed, perhaps for memory, or its node is gone"
    )
    assert after == "after it: 2 more (ranks 0, 2)"
    assert error_lines([ended(0, ""), ended(1, "")], alive=True) == []


def test_the_record_of_ranks_that_are_no_more_is_taken_away(tmp_path: Path) -> None:
    from train.distributed import Place
    from train.rank_log import RankLog

    (tmp_path / "logs").mkdir()
    old = {"rank": 3, "host": "a", "process": os.getpid(), "ending": "fault", "at": 1.0, "text": "old"}
    (tmp_path / "logs/rank-00003.json").write_text(json.dumps(old))
    RankLog(tmp_path, Place(rank=0, local_rank=0, world_size=1, local_world_size=1)).start()
    assert [end.rank for end in read_ends(tmp_path)] == [0]
