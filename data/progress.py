"""How far a long step is: a bar on a terminal, a line now and then without one."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

LINE_EVERY_S = 30.0
DRAW_EVERY_S = 0.1
Total = int | Callable[[], int | None] | None


class Report(Protocol):
    """A function to be told how many more are done."""

    def __call__(self, more: int, *, pictures: int = 0, bytes: int = 0, rejected: int = 0) -> None:
        """`more` rows (or whatever the step counts), and what was in them."""


@contextmanager
def progress(step: str, unit: str, total: Total = None) -> Iterator[Report]:
    """Show a step's progress on stderr while the block runs.

    `total`: how many there are; a function if that is only guessed at, better as more is done.
    Yields a function to be told how many more are done.
    """
    counts = _Counts(unit)
    if not sys.stderr.isatty():
        lines = _Lines(step, total, counts)
        yield lines.advance
        lines.say()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rates]}"))
    console = Console(stderr=True)
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bars:
        task = bars.add_task(step, total=_now(total), rates="")
        drawn = 0.0

        def draw() -> None:
            bars.update(task, completed=counts.done, total=_now(total), rates=counts.rates())

        def advance(more: int, *, pictures: int = 0, bytes: int = 0, rejected: int = 0) -> None:
            nonlocal drawn
            counts.add(more, pictures, bytes, rejected)
            if time.monotonic() - drawn >= DRAW_EVERY_S:
                drawn = time.monotonic()
                draw()

        yield advance
        draw()


class _Counts:
    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._start = time.monotonic()
        self.done = self._pictures = self._bytes = self._rejected = 0

    def add(self, more: int, pictures: int, bytes_: int, rejected: int) -> None:
        self.done += more
        self._pictures += pictures
        self._bytes += bytes_
        self._rejected += rejected

    @property
    def seconds(self) -> float:
        return max(time.monotonic() - self._start, 1e-9)

    def rates(self) -> str:
        said = [f"{self.done / self.seconds:,.0f} {self._unit}/s"]
        if self._pictures:
            said.append(f"{self._pictures / self.seconds:,.0f} pictures/s")
            said.append(f"{self._bytes / self.seconds / 1e6:,.1f} MB/s")
        if self._rejected:
            said.append(f"{self._rejected:,} rejected")
        return ", ".join(said)


def _now(total: Total) -> int | None:
    return total() if callable(total) else total


class _Lines:
    def __init__(self, step: str, total: Total, counts: _Counts) -> None:
        self._step, self._total, self._counts = step, total, counts
        self._said = time.monotonic()

    def advance(self, more: int, *, pictures: int = 0, bytes: int = 0, rejected: int = 0) -> None:
        self._counts.add(more, pictures, bytes, rejected)
        if time.monotonic() - self._said >= LINE_EVERY_S:
            self.say()

    def say(self) -> None:
        self._said = time.monotonic()
        done, seconds = self._counts.done, self._counts.seconds
        of, left = "", ""
        if total := _now(self._total):
            of = f" of about {total:,}" if callable(self._total) else f" of {total:,}"
            left = f", {(total - done) * seconds / done:,.0f} s left" if 0 < done < total else ""
        print(f"{self._step}: {done:,}{of}, {seconds:.0f} s{left}, {self._counts.rates()}", file=sys.stderr, flush=True)
