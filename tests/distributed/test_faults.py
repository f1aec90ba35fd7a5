"""Faults put into a training: exit code, message, status.json, what is on disk, and how the same run goes on."""

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import pytest

from tests.distributed.conftest import LIMIT_S, ROOT, Bench, environment, numbers
from train.checkpoint import Manifest
from train.keeping import found, newest

QUICK = (
    "stop.steps=6",
    "checkpoint.every_steps=2",
    "data.workers=0",
    "data.validation=none",
    "evaluate.every_steps=0",
    "deepspeed=ds_configs/zero2.json",
    "optim.grad_clip=0.0",
)
MEASURED = (
    *QUICK,
    "data.validation=validation",
    "evaluate={every_steps: 2, answers: 3, answer_tokens: 8, answer_batch: 2}",
)
# At such a rate no evaluation after the first finds a lower loss.
IMPATIENT = (*MEASURED, "stop.patience=2", "stop.steps=20", "optim.lr=3.0", "optim.warmup_steps=0")
# Grows at each step from 2 ** 10, until the gradient overflows.
HALF = (*QUICK, "stop.steps=10", "model.precision=fp16", "optim.loss_scale_power=10", "optim.loss_scale_window=1")
# One process does them one after the other; the same name twice is the same run, started again.
CASES: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("skipped", {"kind": "loss", "steps": [4]}, QUICK),
    ("skipped-gradient", {"kind": "gradient", "steps": [4]}, QUICK),
    ("diverged", {"kind": "gradient", "steps": [4, 5, 6]}, (*QUICK, "optim.max_skipped=1")),
    ("memory", {"kind": "memory", "steps": [4]}, QUICK),
    ("no room", {"kind": "no room", "saves": [1]}, QUICK),
    ("full", {"kind": "full", "saves": [3]}, QUICK),
    ("full", {}, QUICK),
    ("bug", {"kind": "bug", "saves": [1]}, QUICK),
    ("evaluating", {"kind": "signal in evaluation", "signal": "SIGTERM"}, MEASURED),
    ("evaluating", {}, MEASURED),
    ("saving", {"kind": "signal in save", "signal": "SIGUSR1", "saves": [1]}, QUICK),
    ("quiet", {}, MEASURED),
    ("metrics", {}, MEASURED),
    ("wordless", {"kind": "nan answers"}, MEASURED),
    ("impatient", {"kind": "signal in save", "signal": "SIGTERM", "saves": [1]}, IMPATIENT),
    ("impatient", {}, IMPATIENT),
    ("impatient done", {}, (*IMPATIENT, "run.name=fault-impatient")),
    ("late", {}, (*QUICK, "stop.hours=1.0e-9")),
    ("half", {"half": True}, HALF),
    ("half cut", {"half": True, "kind": "signal in save", "signal": "SIGUSR1", "saves": [3]}, HALF),
    ("half cut", {"half": True}, HALF),
    ("half fixed", {"half": True}, (*HALF, "stop.steps=2", "optim.loss_scale=1024.0")),
    ("no half", {"half": False}, HALF),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a training ended."""

    code: int
    output: str


@pytest.fixture(scope="module")
def outcomes(bench: Bench) -> dict[str, Outcome]:
    """What became of each case; the second start of a run has " again" behind its name."""
    cases: list[dict[str, Any]] = []
    for name, fault, settings in CASES:
        run = f"fault-{name.replace(' ', '-')}"
        again = " again" if any(case["name"] == name for case in cases) else ""
        arguments = bench.command(1, run, *settings)[2:]
        cases.append({"name": f"{name}{again}", "fault": fault, "arguments": arguments})
    # A full disk under one file alone, and a file that cannot be replaced.
    broken = bench.runs / "fault-metrics"
    (broken / "best.json").mkdir(parents=True)
    (broken / "metrics.jsonl").symlink_to("/dev/full")
    file = bench.folder / "cases.json"
    file.write_text(json.dumps(cases))
    command = [sys.executable, "-m", "tests.factories.faulty", "--cases", str(file)]
    ended = subprocess.run(
        command,
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_S,
    )
    assert ended.returncode == 0, ended.stdout
    written = json.loads(file.with_name("outcomes.json").read_text())
    return {name: Outcome(**values) for name, values in written.items()}


def steps(bench: Bench, name: str) -> list[int]:
    """The steps of a run's checkpoints."""
    return [int(folder.name[5:]) for folder in found(bench.runs / f"fault-{name}")]


def records(bench: Bench, name: str) -> list[dict[str, Any]]:
    """The lines of a run's skipped.jsonl."""
    return [json.loads(line) for line in (bench.runs / f"fault-{name}" / "skipped.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("name", "what"), [("skipped", "the loss"), ("skipped-gradient", "the gradient")])
def test_a_step_that_is_not_finite_changes_nothing_and_its_keys_are_recorded(
    bench: Bench, outcomes: dict[str, Outcome], name: str, what: str
) -> None:
    assert outcomes[name].code == 0, outcomes[name].output
    assert f"step 4 is skipped: {what} of the samples" in outcomes[name].output
    skipped = [line["step"] for line in bench.lines(f"fault-{name}") if line["grad_norm"] is None]
    assert skipped == [4]
    lines = records(bench, name)
    assert {line["step"] for line in lines} == {4}
    assert all(line["keys"] for line in lines)
    assert [line["loss"] is None for line in lines[:2]] == [what == "the loss"] * 2
    folder = newest(bench.runs / f"fault-{name}")
    assert folder is not None
    assert Manifest.load(folder).adam_step == 5
    assert bench.lines(f"fault-{name}")[-1]["loss"] is not None


def test_too_many_steps_in_a_row_that_are_not_finite_end_the_run(bench: Bench, outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes["diverged"]
    assert outcome.code == 2
    assert "2 steps in a row, optim.max_skipped allows 1" in outcome.output
    assert "step-000004" in outcome.output.partition("in a row")[2]
    assert records(bench, "diverged")[-1]["keys"][0] in outcome.output.partition("error: ")[2]
    status = bench.status("fault-diverged")
    assert status["state"] == "failed"
    assert status["checkpoint"] == "checkpoints/step-000004"


def test_out_of_memory_says_what_of_which_shape_and_what_helps(bench: Bench, outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes["memory"]
    assert outcome.code == 2
    assert "Traceback" not in outcome.output
    message = outcome.output.partition("error: ")[2]
    for words in ("step 4 of pack", "tokens: ", "crops: ", "2.00 GiB", "model.checkpoint_decoder=true", "pack_length"):
        assert words in message
    assert bench.status("fault-memory")["state"] == "failed"
    assert steps(bench, "memory") == [2]


def test_a_disk_without_room_costs_that_checkpoint_alone(bench: Bench, outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes["no room"]
    assert outcome.code == 0, outcome.output
    assert "the checkpoint of step 2 is not written" in outcome.output
    assert "0.00 GB free" in outcome.output
    assert steps(bench, "no-room") == [4, 6]
    assert bench.status("fault-no-room") == {
        "state": "finished",
        "step": 6,
        "steps": 6,
        "checkpoint": "checkpoints/step-000006",
        "reason": "stop.steps = 6",
    }


def test_a_last_checkpoint_that_is_not_written_fails_the_run_which_then_goes_on(
    bench: Bench, outcomes: dict[str, Outcome]
) -> None:
    outcome = outcomes["full"]
    assert outcome.code == 2
    assert "the checkpoint of step 6 is not written: rank 0: [Errno 28]" in outcome.output
    assert outcome.output.count("error: ") == 1
    again = outcomes["full again"]
    assert again.code == 0
    assert "going on from" in again.output
    assert "(step 4)" in again.output
    assert steps(bench, "full") == [2, 4, 6]
    assert not list((bench.runs / "fault-full/checkpoints").glob(".*"))


def test_a_fault_of_the_writer_is_told_at_the_next_step(bench: Bench, outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes["bug"]
    assert outcome.code == 1
    assert "RuntimeError: a bug in the writer" in outcome.output
    assert bench.status("fault-bug")["state"] == "failed"
    assert "a bug in the writer" in bench.status("fault-bug")["reason"]
    assert steps(bench, "bug") == []


def test_a_signal_in_an_evaluation_is_answered_and_the_run_ends_as_if_none_had_come(
    bench: Bench, outcomes: dict[str, Outcome]
) -> None:
    outcome = outcomes["evaluating"]
    assert outcome.code == 0, outcome.output
    assert "SIGTERM after step 2: saved" in outcome.output
    assert outcomes["evaluating again"].code == 0
    for kind in ("train", "validation"):
        lines = [numbers(line) for line in bench.lines("fault-evaluating", kind)]
        assert lines == [numbers(line) for line in bench.lines("fault-quiet", kind)]
    for file in (bench.runs / "fault-quiet/checkpoints/step-000006").glob("*.safetensors"):
        assert file.read_bytes() == (bench.runs / "fault-evaluating/checkpoints/step-000006" / file.name).read_bytes()


def test_measuring_and_a_save_that_failed_change_nothing_of_the_training(
    bench: Bench, outcomes: dict[str, Outcome]
) -> None:
    assert outcomes["quiet"].code == outcomes["no room"].code == 0
    measured, bare = bench.lines("fault-quiet"), bench.lines("fault-no-room")
    assert [line["answers"]["samples"] for line in bench.lines("fault-quiet", "validation")] == [3] * 3
    said = [path.read_text() for path in sorted((bench.runs / "fault-quiet/answers").iterdir())]
    assert [len(text.splitlines()) for text in said] == [3] * 3
    assert not bench.lines("fault-no-room", "validation")
    assert list(map(numbers, measured)) == list(map(numbers, bare))


def test_a_model_that_cannot_answer_is_told_and_trains_on(bench: Bench, outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes["wordless"]
    assert outcome.code == 0, outcome.output
    assert outcome.output.count("no answers: the model computes NaN") == 3
    (one, *_) = bench.lines("fault-wordless", "validation")
    assert (one["answers"]["samples"], "category/accuracy" in one["answers"]) == (0, False)
    assert not (bench.runs / "fault-wordless/answers").exists()
    assert list(map(numbers, bench.lines("fault-wordless"))) == list(map(numbers, bench.lines("fault-quiet")))


def test_a_signal_in_a_save_is_answered_once_that_save_is_whole(bench: Bench, outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes["saving"]
    assert outcome.code == 0, outcome.output
    status = bench.status("fault-saving")
    assert status["state"] == "preempted"
    assert "SIGUSR1" in status["reason"]
    assert status["step"] < 6
    assert steps(bench, "saving")[-1] == status["step"]
    assert 2 in steps(bench, "saving")


def test_a_gradient_that_overflows_in_fp16_lowers_the_scale_and_is_no_step_that_is_not_finite(
    bench: Bench, outcomes: dict[str, Outcome]
) -> None:
    assert outcomes["half"].code == 0, outcomes["half"].output
    lines = bench.lines("fault-half")
    scales = [line["loss_scale"] for line in lines]
    overflows = [place for place, line in enumerate(lines) if line["overflow"]]
    assert overflows
    assert [place for place, line in enumerate(lines) if line["grad_norm"] is None] == overflows
    assert all(line["loss"] is not None for line in lines)
    first = overflows[0]
    assert scales[:first] == [1024.0, 1024.0, *(2.0**power for power in range(11, 9 + first))]
    assert f"step {first + 1} is skipped: its gradient overflowed at a loss scale of" in outcomes["half"].output
    assert min(scales[first + 1 :]) < scales[first]
    assert not (bench.runs / "fault-half/skipped.jsonl").exists()
    folder = newest(bench.runs / "fault-half")
    assert folder is not None
    assert Manifest.load(folder).adam_step == len(lines) - len(overflows)


def test_a_run_in_fp16_goes_on_with_its_scale_to_the_bit(bench: Bench, outcomes: dict[str, Outcome]) -> None:
    assert "saved" in outcomes["half cut"].output
    assert bench.status("fault-half-cut")["state"] == "finished", outcomes["half cut again"].output
    assert "going on from" in outcomes["half cut again"].output
    assert list(map(numbers, bench.lines("fault-half-cut"))) == list(map(numbers, bench.lines("fault-half")))
    for file in (bench.runs / "fault-half/checkpoints/step-000010").glob("*.safetensors"):
        assert file.read_bytes() == (bench.runs / "fault-half-cut/checkpoints/step-000010" / file.name).read_bytes()


def test_a_step_after_which_the_scale_grows_takes_the_whole_gradient(
    bench: Bench, outcomes: dict[str, Outcome]
) -> None:
    assert outcomes["half fixed"].code == 0, outcomes["half fixed"].output
    fixed, growing = bench.lines("fault-half-fixed"), bench.lines("fault-half")
    assert [line["loss_scale"] for line in fixed] == [1024.0] * 2
    assert [line["loss_scale"] for line in growing[:3]] == [1024.0, 1024.0, 2048.0]
    assert [line["grad_norm"] for line in fixed] == [line["grad_norm"] for line in growing[:2]]
    for file in (bench.runs / "fault-half-fixed/checkpoints/step-000002").glob("*.safetensors"):
        assert file.read_bytes() == (bench.runs / "fault-half/checkpoints/step-000002" / file.name).read_bytes()


def test_fp16_where_it_cannot_be_had_is_refused_before_anything_is_loaded(
    bench: Bench, outcomes: dict[str, Outcome]
) -> None:
    assert outcomes["no half"].code == 2
    assert "model.precision: fp16 is not computed on this machine's cpu" in outcomes["no half"].output
    left = {path.name for path in (bench.runs / "fault-no-half").iterdir()}
    assert left <= {"logs", "status.json"}


def test_a_run_ends_after_so_many_evaluations_without_a_better_loss_and_counts_over_its_starts(
    bench: Bench, outcomes: dict[str, Outcome]
) -> None:
    assert outcomes["impatient"].code == 0, outcomes["impatient"].output
    assert "stop.steps = 20); may end before by stop.patience = 2" in outcomes["impatient"].output
    assert "SIGTERM" in outcomes["impatient"].output
    assert outcomes["impatient again"].code == 0, outcomes["impatient again"].output
    status = bench.status("fault-impatient")
    losses = [line["loss"] for line in bench.lines("fault-impatient", "validation")]
    assert status["step"] == 2 * len(losses) < 20
    assert min(losses) == losses[-3]
    assert (status["state"], status["steps"]) == ("finished", 20)
    assert status["reason"].startswith("stop.patience = 2: 2 evaluations without a lower loss, the least is ")
    assert steps(bench, "impatient")[-1] == status["step"]
    assert f"is finished: {status['step']} steps (stop.patience = 2" in outcomes["impatient done"].output


def test_a_run_ends_when_its_time_is_up_with_a_checkpoint(bench: Bench, outcomes: dict[str, Outcome]) -> None:
    assert outcomes["late"].code == 0, outcomes["late"].output
    status = bench.status("fault-late")
    assert (status["state"], status["step"], status["checkpoint"]) == ("finished", 1, "checkpoints/step-000001")
    assert status["reason"].startswith("stop.hours = 1e-09: trained for ")


def test_files_that_cannot_be_written_end_no_training_and_are_named(bench: Bench, outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes["metrics"]
    assert outcome.code == 0, outcome.output
    assert outcome.output.count("metrics.jsonl cannot be written (No space left on device)") == 1
    assert "metrics.jsonl lacks its last 9 lines" in outcome.output
    assert outcome.output.count("best.json cannot be written") == 1
    assert steps(bench, "metrics") == [2, 4, 6]
    assert bench.status("fault-metrics")["state"] == "finished"


@pytest.mark.parametrize(
    "kind",
    [
        "sleep",
        pytest.param("stop", marks=pytest.mark.soak),
        pytest.param("sleep in data", marks=pytest.mark.soak),
        pytest.param("sleep in save", marks=pytest.mark.soak),
    ],
)
def test_a_rank_that_hangs_is_named_and_all_end_with_their_stacks(bench: Bench, kind: str) -> None:
    name = f"hangs-{kind.replace(' ', '-')}"
    command = bench.command(2, name, *QUICK, "run.stall_minutes=0.15", "data.patience_minutes=0")
    place = command.index("train/main.py")
    command[place : place + 1] = ["-m", "tests.factories.faulty"]
    ended = subprocess.run(
        command,
        cwd=ROOT,
        env=environment(FAULT=json.dumps({"kind": kind, "steps": [3], "saves": [1], "rank": 1})),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_S,
    )
    assert ended.returncode != 0
    reason = bench.status(name)["reason"]
    assert bench.status(name)["state"] == "failed"
    first = reason.splitlines()[0]
    assert first.startswith("stalled: rank 1 on ")
    assert "rank 0" not in first
    # A writer holds training up from the next save on: that of step 4.
    where = {"sleep in data": "'data' of step 3", "sleep in save": "'save' of step 4"}.get(kind, "'forward' of step 3")
    assert f"in {where}" in first
    assert reason in ended.stdout
    stacks = sorted(path.name for path in (bench.runs / name / "stacks").iterdir())
    # A stopped process writes nothing: the launcher ends it.
    assert stacks == ["rank-00000.txt"] + ([] if kind == "stop" else ["rank-00001.txt"])
    if kind != "stop":
        assert "faulty.py" in (bench.runs / name / "stacks/rank-00001.txt").read_text()
