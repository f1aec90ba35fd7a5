"""Whether training waits for its data, and why: looked at over a window of steps."""

import os
import statistics
from collections.abc import Mapping, Sequence

from train.pipeline.encode import ENCODING, READING, REMOTE

WINDOW = 50
WORTH_A_WORD = 0.05
SAID_EVERY = 10  # windows
SLOW_RANK = 3.0  # times what the others wait

ADVICE = {
    READING: "reading the shards: is the disk or the network file system slow? Copy them to a disk of the node",
    REMOTE: "fetching shards from elsewhere: raise data.cache_gb, or copy them to a disk of the node",
    ENCODING: "decoding and cutting pictures: raise data.workers or lower model.num_crops",
}


class Waiting:
    """Sums up a window of steps and says once it is over whether too much of it went by waiting."""

    def __init__(self, workers: int) -> None:
        """`workers`: of each rank, for the advice."""
        self._workers = workers
        self._windows_silent = SAID_EVERY
        self._started = False
        self._clear()

    def _clear(self) -> None:
        self._steps = 0
        self._step_s = 0.0
        self._waited_s = 0.0
        self._by_rank: list[float] = []
        self._spent: dict[str, float] = {}

    def add(self, step_s: float, waited: Sequence[float], spent: Mapping[str, float]) -> str | None:
        """Add a step; returns a warning at the end of a window with too much waiting.

        Args:
            step_s: seconds of the step.
            waited: seconds that each rank waited for its packs.
            spent: seconds of all ranks' workers by what they went into.
        """
        if not self._started:
            # The first step waits for the workers to start.
            self._started = True
            return None
        self._steps += 1
        self._step_s += step_s
        self._waited_s += max(waited)
        self._by_rank = [a + b for a, b in zip(self._by_rank or [0.0] * len(waited), waited, strict=True)]
        self._spent = {name: self._spent.get(name, 0.0) + value for name, value in spent.items()}
        if self._steps < WINDOW:
            return None
        text = self._text() if self._waited_s > WORTH_A_WORD * self._step_s else None
        self._clear()
        if text is None or self._windows_silent < SAID_EVERY:
            self._windows_silent += 1
            return None
        self._windows_silent = 0
        return text

    def _text(self) -> str:
        cause = max(self._spent, key=lambda name: self._spent[name], default=ENCODING)
        share = self._spent.get(cause, 0.0) / (sum(self._spent.values()) or 1.0)
        slowest = max(range(len(self._by_rank)), key=lambda rank: self._by_rank[rank])
        others = [seconds for rank, seconds in enumerate(self._by_rank) if rank != slowest]
        alone = bool(others) and self._by_rank[slowest] > SLOW_RANK * max(statistics.median(others), 1e-9)
        return (
            f"warning: {self._waited_s / self._step_s:.0%} of the last {self._steps} steps was waiting for data"
            f"{f', on rank {slowest} above all (is its machine slow or busy?)' if alone else ''}; {share:.0%} of the "
            f"workers' time went into {ADVICE[cause]} ({self._workers} workers a rank, {os.cpu_count()} cores here)"
        )
