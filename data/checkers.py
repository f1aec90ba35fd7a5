"""Files that have come → checked by the pool, as many at once as have come together, and remembered."""

import asyncio
from concurrent.futures import Executor
from dataclasses import dataclass

from data.checking import Checking, CheckJob, check_files
from data.incoming import Incoming
from data.ledger import Found, Lost
from data.urls import UrlStore

BATCH = 64  # files a worker is given at most at once: to hand a batch over takes as long as to look at a small picture


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A file that waits to be checked."""

    job: CheckJob
    outcome: "asyncio.Future[Found | Lost]"


class Checkers:
    """Keeps the workers of a pool busy; who brings files faster than they are checked has to wait."""

    def __init__(self, pool: Executor, workers: int, checking: Checking, store: UrlStore, incoming: Incoming) -> None:
        self._pool = pool
        self._workers = workers
        self._checking = checking
        self._store = store
        self._incoming = incoming
        self._turns = asyncio.Semaphore(2 * workers)
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue(2 * workers * BATCH)

    async def check(self, job: CheckJob) -> Found | Lost:
        """Have a file checked. A file of ours is released when this returns."""
        waiting = _Waiting(job, asyncio.get_running_loop().create_future())
        await self._queue.put(waiting)
        return await waiting.outcome

    async def check_all(self, jobs: list[CheckJob]) -> list[Found | Lost]:
        """Have files checked by one worker, in turn; as `check` of each."""
        async with self._turns:
            outcomes = await asyncio.get_running_loop().run_in_executor(self._pool, check_files, self._checking, jobs)
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
            outcomes = await self.check_all([one.job for one in batch])
            for one, outcome in zip(batch, outcomes, strict=True):
                if not one.outcome.done():
                    one.outcome.set_result(outcome)
