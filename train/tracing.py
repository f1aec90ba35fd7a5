"""A torch trace of chosen steps, for chrome://tracing or Perfetto."""

import re
from pathlib import Path
from typing import Any

from data.schema import UserError
from train.distributed import World


class TraceError(UserError):
    """There is no such range of steps."""


class Trace:
    """Records rank 0's steps from `first` to `last`; on other ranks, and for no steps, it does nothing."""

    def __init__(self, steps: str | None, folder: Path, world: World) -> None:
        """
        steps: FIRST or FIRST-LAST, counted from 1 as in metrics.jsonl; None for none.
        folder: where the trace is written.
        """
        self._first, self._last = read_steps(steps) if steps else (0, -1)
        self._path = folder / f"steps-{self._first}-{self._last}.json"
        self._world = world
        self._profiler: Any = None

    def before(self, step: int) -> None:
        """A step begins."""
        if step != self._first or not self._world.first:
            return
        from torch.profiler import ProfilerActivity, profile

        kinds = [ProfilerActivity.CPU]
        if self._world.device.type == "cuda":
            kinds.append(ProfilerActivity.CUDA)
        self._profiler = profile(activities=kinds, record_shapes=True)
        self._profiler.start()

    def after(self, step: int) -> str:
        """A step is done; returns a line for a person once the trace is written, else an empty text."""
        if self._profiler is None or step < self._last:
            return ""
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            profiler.export_chrome_trace(str(self._path))
        except OSError as error:
            return f"warning: {self._path} cannot be written ({error.strerror})"
        return f"trace of steps {self._first} to {self._last}: {self._path}"


def read_steps(text: str) -> tuple[int, int]:
    """FIRST or FIRST-LAST as two steps; raises TraceError for anything else."""
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= first <= last:
        raise TraceError(f"--profile {text}: expected a step or FIRST-LAST, for example --profile 10-12")
    return first, last
