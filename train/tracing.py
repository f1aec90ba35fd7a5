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
        self._asked = steps
        self._first, self._last = read_steps(steps) if steps else (0, -1)
        self._folder = folder
        self._world = world
        self._profiler: Any = None
        self._from = self._to = 0
        """Steps that are in the trace: fewer than asked for where a run goes on within them, or ends."""

    def before(self, step: int) -> None:
        """A step begins."""
        if self._profiler is not None or not self._first <= step <= self._last or not self._world.first:
            return
        from torch.profiler import ProfilerActivity, profile

        kinds = [ProfilerActivity.CPU]
        if self._world.device.type == "cuda":
            kinds.append(ProfilerActivity.CUDA)
        self._profiler = profile(activities=kinds, record_shapes=True)
        self._profiler.start()
        self._from = step

    def after(self, step: int) -> str:
        """A step is done; returns a line for a person once the trace is written, else an empty text."""
        if self._profiler is None:
            return ""
        self._to = step
        return self._write() if step == self._last else ""

    def finish(self) -> str:
        """No more steps come; returns a line for a person where a trace ends early or none was made."""
        if self._profiler is not None and self._to:
            return self._write()
        if self._asked and not self._to and self._world.first:
            return f"warning: --profile {self._asked}: none of these steps was taken in this start of the run"
        return ""

    def _write(self) -> str:
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        path = self._folder / f"steps-{self._from}-{self._to}.json"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            profiler.export_chrome_trace(str(path))
        except OSError as error:
            return f"warning: {path} cannot be written ({error.strerror})"
        return f"trace of steps {self._from} to {self._to}: {path}"


def read_steps(text: str) -> tuple[int, int]:
    """FIRST or FIRST-LAST as two steps; raises TraceError for anything else."""
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= first <= last:
        raise TraceError(f"--profile {text}: expected a step or FIRST-LAST, for example --profile 10-12")
    return first, last
