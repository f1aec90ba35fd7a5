"""What is said of where a run stands."""

import json
from pathlib import Path

import pytest

from train.run_status import main, status_lines
from train.runs import RunFolder


def line(step: int) -> str:
    return json.dumps({"step": step, "kind": "train", "loss": 2.0, "tokens": 100, "time": {"step_s": 0.5}}) + "\n"


def test_a_run_in_progress_is_told_from_one_whose_job_is_gone(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.hold()
    run.set_status("running", step=2, steps=10, checkpoint=None)
    run.metrics.write_text(line(1) + line(2) + '{"step": 3, "ki')
    lines = status_lines(run.path)
    assert f"{run.path}: running, step 2 of 10" in lines
    assert "newest whole checkpoint: none yet" in lines
    assert "0.50 s a step, 200 tokens/s; 8 steps left, 0.0 h at that rate" in lines
    assert run.lock is not None
    run.lock.close()
    assert any("nobody is at work on it" in one for one in status_lines(run.path))


def test_a_run_that_failed_before_its_first_step_has_its_reason(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.set_stopped("no new step in 3 tries (step 0)")
    assert status_lines(tmp_path)[0] == f"{tmp_path}: failed (no new step in 3 tries (step 0))"


def test_a_run_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["nothing"]) == 2
