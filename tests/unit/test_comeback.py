"""What becomes of a Slurm job whose training has ended."""

import json
from pathlib import Path

import pytest

from train.comeback import Ended, add_try, at_fault, decide, main
from train.rank_log import RankEnd
from train.runs import RunFolder

KILLED = RankEnd(rank=1, host="node2", process=7)
MENDABLE = RankEnd(rank=0, host="node1", process=7, ending="mendable", at=1.0, text="no shards at x")


def ended(code: int = 0, asked: str = "", state: str = "running", reason: str = "", **more: object) -> Ended:
    values: dict = {"reached": (5,), "first": None} | more
    return Ended(code=code, asked=asked, status={"state": state, "reason": reason}, **values)


@pytest.mark.parametrize(
    ("how", "back", "code"),
    [
        (ended(state="finished"), False, 0),
        (ended(state="preempted", reason="SIGUSR1 after step 7"), True, 0),
        (ended(asked="USR1", code=138), True, 0),
        (ended(state="preempted", reason="SIGTERM after step 7"), False, 0),
        (ended(asked="TERM", code=143), False, 0),
        (ended(state="preempted", reason="SIGTERM after step 7", preempted=True), True, 0),
        (ended(code=143, preempted=True, reached=()), True, 0),
        (ended(state="finished", preempted=True), False, 0),
        # Of an earlier try that was asked to leave: this one had not begun yet.
        (ended(code=1, state="preempted", reason="SIGTERM after step 7", first=KILLED), True, 0),
        (ended(code=1, state="preempted", reason="SIGUSR1 after step 7", first=KILLED, reached=(7, 7, 7)), False, 1),
        (ended(code=1, first=KILLED), True, 0),
        (ended(code=137), True, 0),
        (ended(code=2, first=MENDABLE), False, 2),
        (ended(code=2, first=MENDABLE, unfit=("node2",)), True, 0),
    ],
)
def test_a_job_comes_back_unless_it_is_done_was_ended_or_must_be_mended(how: Ended, back: bool, code: int) -> None:
    decision = decide(how)
    assert (decision.back, decision.code) == (back, code)
    assert decision.reason


@pytest.mark.parametrize(
    ("reached", "back"),
    [((0,), True), ((4, 4), True), ((4, 4, 4), False), ((9, 4, 4, 4), False), ((4, 9, 9, 9), True), ((3, 4, 5), True)],
)
def test_three_tries_without_a_new_step_are_the_last(reached: tuple[int, ...], back: bool) -> None:
    decision = decide(ended(code=1, first=KILLED, reached=reached))
    assert decision.back == back
    if not back:
        assert decision.reason.startswith("no new step in 3 tries")
        assert "rank 1 on node2" in decision.reason
        assert decision.code == 1


def test_tries_are_counted_by_the_highest_step_until_one_was_asked_to_leave(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert add_try(run, asked=False) == (0,)
    (tmp_path / "metrics.jsonl").write_text('{"step": 3, "kind": "train"}\n{"step": 4, "ki')
    assert add_try(run, asked=False) == (0, 3)
    assert add_try(run, asked=True) == ()
    assert add_try(run, asked=False) == (3,)


def test_a_job_that_was_refused_leaves_the_run_of_another_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunFolder(tmp_path / "run")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    run.hold()
    run.set_status("running", step=5, steps=10, checkpoint=None)
    before = {path: path.read_bytes() for path in run.path.rglob("*")}
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert main(["--code", "2", "--", "--set", f"run.folder={tmp_path}", "--run", "run"]) == 2
    assert {path: path.read_bytes() for path in run.path.rglob("*")} == before
    assert "job 7): nothing is done with it" in capsys.readouterr().out


def test_only_a_preflight_of_this_try_names_nodes(tmp_path: Path) -> None:
    found = [{"node": "node2", "fault": True}, {"node": "node1", "fault": False}]
    (tmp_path / "preflight.json").write_text(json.dumps({"findings": found}))
    written = (tmp_path / "preflight.json").stat().st_mtime
    assert at_fault(RunFolder(tmp_path), written - 1) == {"node2"}
    assert at_fault(RunFolder(tmp_path), written + 1) == set()
