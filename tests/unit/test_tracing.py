"""Which steps a trace is of, and what it is written to."""

import json
from pathlib import Path

import pytest
import torch

from train.distributed import Place, World
from train.tracing import Trace, TraceError, read_steps


def test_a_step_or_a_range_is_read_and_anything_else_refused() -> None:
    assert read_steps("12") == (12, 12)
    assert read_steps("10-12") == (10, 12)
    for text in ("", "0", "12-10", "a", "1:2"):
        with pytest.raises(TraceError, match="--profile"):
            read_steps(text)


def trace_of(steps: str, folder: Path, rank: int = 0) -> Trace:
    """A trace on one of two ranks."""
    place = Place(rank=rank, local_rank=rank, world_size=2, local_world_size=2)
    return Trace(steps, folder, World(place=place, device=torch.device("cpu"), group=None))


@pytest.mark.parametrize("rank", [0, 1])
def test_the_chosen_steps_of_rank_0_are_traced(tmp_path: Path, rank: int) -> None:
    trace = trace_of("2-3", tmp_path, rank)
    said = []
    for step in range(1, 5):
        trace.before(step)
        with torch.profiler.record_function(f"the work of step {step}"):
            torch.ones(3).sum()
        said.append(trace.after(step))
    if rank:
        assert said == [""] * 4
        return
    assert [bool(text) for text in said] == [False, False, True, False]
    assert trace.finish() == ""
    events = json.loads((tmp_path / "steps-2-3.json").read_text())["traceEvents"]
    names = {event["name"] for event in events}
    assert {f"the work of step {step}" for step in range(1, 5)} & names == {"the work of step 2", "the work of step 3"}


def test_a_run_that_goes_on_within_the_steps_and_ends_before_the_last_writes_those_it_took(tmp_path: Path) -> None:
    trace = trace_of("2-9", tmp_path)
    for step in (4, 5):
        trace.before(step)
        assert trace.after(step) == ""
    assert trace.finish() == f"trace of steps 4 to 5: {tmp_path}/steps-4-5.json"
    assert json.loads((tmp_path / "steps-4-5.json").read_text())["traceEvents"]
    assert trace.finish() == ""


def test_steps_that_no_run_takes_are_told(tmp_path: Path) -> None:
    trace = trace_of("2-3", tmp_path)
    trace.before(4)
    assert trace.after(4) == ""
    assert "--profile 2-3: none of these steps was taken" in trace.finish()
