"""The run folder: one job at a time, the same settings, metrics cut back to the checkpoint."""

import json
import os
import socket
from pathlib import Path

import pytest

from train.config import validate
from train.config_schema import Config
from train.runs import HeldError, RunError, RunFolder

ZERO = {"zero_optimization": {"stage": 3}}


def config(**sections: dict) -> Config:
    return validate(sections, "test")


def begun(folder: Path, settings: Config, steps: int = 1) -> RunFolder:
    """A run that has taken some steps."""
    run = RunFolder(folder / "run")
    run.hold()
    run.ours = True
    run.begin(settings, ZERO, {}, 10, None)
    run.metrics.write_text("".join(json.dumps({"step": step + 1, "kind": "train"}) + "\n" for step in range(steps)))
    return run


def test_one_job_at_a_time_holds_a_run(tmp_path: Path) -> None:
    first, second = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    first.hold()
    with pytest.raises(RunError, match=r"another training job is using it \(process \d+ on "):
        second.hold()
    assert first.lock is not None
    first.lock.close()
    second.hold()


def test_a_second_job_is_refused_before_it_writes_and_an_earlier_try_of_this_one_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    second.check_free()
    assert not first.path.exists()
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    first.hold()
    lock = first.lock
    assert lock is not None
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        lock.close()  # the other node's lease is over

    second.check_free(say)
    assert ["an earlier try of this job" in text for text in said] == [True]
    second.hold()
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    with pytest.raises(HeldError, match="job 7"):
        first.check_free(say)
    assert len(said) == 1
    assert (second.path / "lock").read_text() == f"process {os.getpid()} on {socket.gethostname()}, job 7\n"


def test_equal_settings_go_on_and_a_changed_stop_is_told(tmp_path: Path) -> None:
    run = begun(tmp_path, config(stop={"steps": 10}))
    assert run.compare(config(stop={"steps": 10}), ZERO).changed == {}
    earlier = run.compare(config(stop={"steps": 20}, logging={"every_steps": 5}), ZERO)
    assert earlier.trained
    assert earlier.changed == {"stop.steps": (10, 20), "logging.every_steps": (1, 5)}


def test_a_setting_that_is_newer_than_the_run_counts_as_left_at_its_default(tmp_path: Path) -> None:
    run = begun(tmp_path, config(stop={"steps": 10}))
    known = run.path / "config.yaml"
    known.write_text("".join(line for line in known.read_text().splitlines(True) if "max_skipped" not in line))
    assert run.compare(config(stop={"steps": 10}), ZERO).changed == {}


def test_other_settings_are_refused_with_old_and_new(tmp_path: Path) -> None:
    run = begun(tmp_path, config(stop={"steps": 10}))
    with pytest.raises(RunError) as caught:
        run.compare(config(stop={"steps": 20}, optim={"lr": 0.5}), {"zero_optimization": {"stage": 2}})
    message = str(caught.value)
    assert "optim.lr: 2e-05 -> 0.5" in message
    assert "deepspeed.json.zero_optimization.stage: 3 -> 2" in message
    assert "stop.steps" not in message
    assert "--run NAME" in message


def test_a_run_that_took_no_step_may_be_started_with_anything(tmp_path: Path) -> None:
    run = begun(tmp_path, config(), steps=0)
    assert not run.compare(config(optim={"lr": 0.5}), ZERO).trained


def test_metrics_are_cut_back_to_a_step_and_a_torn_line_is_dropped(tmp_path: Path) -> None:
    run = begun(tmp_path, config())
    lines = ['{"step": 1, "kind": "train"}', '{"step": 2, "kind": "train"}', '{"step": 2, "kind": "validation"}']
    run.metrics.write_text("\n".join([*lines, '{"step": 3, "kind": "train"}', '{"step": 4, "ki']))
    run.cut_metrics(3)
    assert run.metrics.read_text().splitlines() == [*lines, '{"step": 3, "kind": "train"}']
    run.cut_metrics(2)
    assert run.metrics.read_text().splitlines() == lines


def test_the_first_reason_of_a_failure_stays(tmp_path: Path) -> None:
    run = begun(tmp_path, config())
    run.set_failed("the disk is full")
    run.set_failed("rank 1: connection closed")
    status = run.status()
    assert (status["state"], status["reason"], status["steps"]) == ("failed", "the disk is full", 10)


@pytest.mark.parametrize("left", [b"", b'{"state": "run', b"[1]", b"\xff"])
def test_a_damaged_status_is_none_and_the_next_start_writes_it_anew(tmp_path: Path, left: bytes) -> None:
    run = begun(tmp_path, config())
    (run.path / "status.json").write_bytes(left)
    assert RunFolder(run.path).status() == {}
    run.set_failed("the disk is full")
    assert run.status()["state"] == "failed"


def test_a_job_that_does_not_hold_the_run_cannot_fail_it(tmp_path: Path) -> None:
    begun(tmp_path, config())
    other = RunFolder(tmp_path / "run")
    other.set_failed("refused")
    assert other.status()["state"] == "running"


def test_a_run_is_finished_until_its_end_is_moved(tmp_path: Path) -> None:
    run = begun(tmp_path, config())
    last = run.checkpoints / "step-000010"
    assert not run.is_finished(last, 10)
    run.set_status("finished", step=10, steps=10, checkpoint=last)
    assert run.is_finished(last, 10)
    assert not run.is_finished(last, 11)
    assert not run.is_finished(run.checkpoints / "step-000006", 10)
    assert not run.is_finished(None, 10)
    assert run.status()["checkpoint"] == "checkpoints/step-000010"


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot be written .* set run\.folder"):
        RunFolder(tmp_path / "file/run").hold()
