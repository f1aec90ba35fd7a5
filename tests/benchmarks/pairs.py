"""Side by side timings: two or more ways of one job, in turns, so that a busy machine slows all of them alike."""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """One way's seconds, round by round."""

    seconds: tuple[float, ...]

    @property
    def median_s(self) -> float:
        """Seconds of the middle round."""
        return statistics.median(self.seconds)

    def times_faster_than(self, other: "Timing") -> float:
        """The middle one of the rounds' ratios: how often this way fits into the other's time."""
        return statistics.median(there / here for here, there in zip(self.seconds, other.seconds, strict=True))


def in_turns(
    ways: dict[str, Callable[[], object]],
    rounds: int,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
    before: Callable[[], object] = lambda: None,
) -> dict[str, Timing]:
    """Call each way once a round, every other round in the opposite order; returns their times by name.

    `warm_up`: first rounds that are not counted. `clock`: `time.process_time` for work of this process alone, whose
    waits for a core that others keep busy are then left out. `before`: called before each and not timed; `os.sync` for
    those that write, so that none waits for what another left to the disk.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(-warm_up, rounds):
        for name in ways if number % 2 else reversed(ways):
            before()
            start = clock()
            ways[name]()
            taken = clock() - start
            if number >= 0:
                seconds[name].append(taken)
    return {name: Timing(seconds=tuple(taken)) for name, taken in seconds.items()}


def keep_to_one_core() -> None:
    """Stay on one core, with one thread, as a worker process does."""
    import torch  # here, so that who only times or prints needs none of it

    torch.set_num_threads(1)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def table_lines(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """A table in Markdown, its columns as wide as they need to be."""
    widths = [max(len(row[place]) for row in (header, *rows)) for place in range(len(header))]
    return [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in (header, tuple("-" * width for width in widths), *rows)
    ]


def print_table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Print a table in Markdown."""
    print("\n".join(table_lines(header, rows)))
