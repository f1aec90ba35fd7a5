"""How far a long step is: a bar on a terminal, a line now and then without one."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_EVERY_S = 30.0


@contextmanager
def progress(step: str, unit: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Show a step's progress on stderr while the block runs.

    Yields a function to be told how many more are done.
    """
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit + " {task.fields[rate]}"),
        )
        with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bars:
            start = time.monotonic()
            task = bars.add_task(step, total=total, rate="")

            def advance(more: int) -> None:
                done = bars.tasks[0].completed + more
                bars.update(task, advance=more, rate=f"{done / max(time.monotonic() - start, 1e-9):,.0f}/s")

            yield advance
        return
    lines = _Lines(step, unit, total)
    yield lines.advance
    lines.say()


class _Lines:
    def __init__(self, step: str, unit: str, total: int | None) -> None:
        self._step, self._unit, self._total = step, unit, total
        self._start = self._said = time.monotonic()
        self._done = 0

    def advance(self, more: int) -> None:
        self._done += more
        if time.monotonic() - self._said >= LINE_EVERY_S:
            self.say()

    def say(self) -> None:
        self._said = time.monotonic()
        seconds = self._said - self._start
        of = f" of {self._total:,}" if self._total else ""
        rate = self._done / max(seconds, 1e-9)
        print(
            f"{self._step}: {self._done:,}{of} {self._unit}, {seconds:.0f} s, {rate:,.0f}/s",
            file=sys.stderr,
            flush=True,
        )
