"""Files that have come → checked by the pool, as many at once as have come together, and remembered."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor

from data.incoming import Incoming
from data.jobs import Checking, CheckJob, check
from data.ledger import Found, Lost
from data.urls import UrlStore

BATCH = 64  # files a worker is given at most at once: to hand a batch over takes as long as to look at a small picture


Told = Callable[[Found | Lost], None]


class Checkers:
    """Keeps the workers of a pool busy; who brings files faster than they are checked has to wait."""

    def __init__(self, pool: Executor, workers: int, checking: Checking, store: UrlStore, incoming: Incoming) -> None:
        self._pool = pool
        self._workers = workers
        self._checking = checking
        self._store = store
        self._incoming = incoming
        self._turns = asyncio.Semaphore(2 * workers)
        self._queue: asyncio.Queue[tuple[CheckJob, Told]] = asyncio.Queue(2 * workers * BATCH)

    async def add(self, job: CheckJob, told: Told) -> None:
        """Have a file checked; waits only for its turn. `told` what became of it, a file of ours is released by then.

        Told, not waited for: to wake somebody for each picture takes a tenth of the time that fetching one does.
        """
        await self._queue.put((job, told))

    async def check_all(self, jobs: list[CheckJob]) -> list[Found | Lost]:
        """Have files checked by one worker, in turn. Files of ours are released when this returns."""
        async with self._turns:
            outcomes = await asyncio.get_running_loop().run_in_executor(self._pool, check, self._checking, jobs)
        for job, outcome in zip(jobs, outcomes, strict=True):
            if job.attempts:
                self._store.put(outcome)
            if job.ours:
                self._incoming.release(job.path, isinstance(outcome, Found) and outcome.offset > 0)
        return outcomes

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._workers + 1):
                group.create_task(self._work())

    async def _work(self) -> None:
        while True:
            batch = [await self._queue.get()]
            while len(batch) < BATCH and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            outcomes = await self.check_all([job for job, _ in batch])
            for (_, told), outcome in zip(batch, outcomes, strict=True):
                told(outcome)
