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


@pytest.mark.parametrize("rank", [0, 1])
def test_the_chosen_steps_of_rank_0_are_traced(tmp_path: Path, rank: int) -> None:
    place = Place(rank=rank, local_rank=rank, world_size=2, local_world_size=2)
    trace = Trace("2-3", tmp_path, World(place=place, device=torch.device("cpu"), group=None))
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
    events = json.loads((tmp_path / "steps-2-3.json").read_text())["traceEvents"]
    names = {event["name"] for event in events}
    assert {f"the work of step {step}" for step in range(1, 5)} & names == {"the work of step 2", "the work of step 3"}
