"""Files that have come → checked by the pool, as many at once as have come together, and remembered before they go."""

import asyncio
import os
from concurrent.futures import Executor
from dataclasses import dataclass, replace

from data.checking import CheckJob, Failure, check_files
from data.download import Visit
from data.ledger import Found, Lost
from data.urls import UrlStore

BATCH = 16  # pictures a worker is given at once


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A file that waits to be checked."""

    job: CheckJob
    asked: int
    visit: Visit
    outcome: "asyncio.Future[Found | Lost]"


class Checkers:
    """Keeps the workers of a pool busy; who brings files faster than they are checked has to wait."""

    def __init__(self, pool: Executor, workers: int, store: UrlStore) -> None:
        self._pool = pool
        self._workers = workers
        self._store = store
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue(2 * workers * BATCH)

    async def check(self, job: CheckJob, asked: int, visit: Visit) -> Found | Lost:
        """Have a file checked. A file of ours is gone when this returns: kept as a picture, or removed."""
        waiting = _Waiting(job, asked, visit, asyncio.get_running_loop().create_future())
        await self._queue.put(waiting)
        return await waiting.outcome

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._workers + 1):
                group.create_task(self._work())

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._queue.get()]
            while len(batch) < BATCH and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            results = await loop.run_in_executor(self._pool, check_files, [one.job for one in batch])
            outcomes = [_outcome(one, result) for one, result in zip(batch, results, strict=True)]
            for one, outcome in zip(batch, outcomes, strict=True):
                if one.visit.attempts:
                    self._store.put(outcome)
            # Kept before the file goes: at no moment would a new start have to ask for it again.
            self._store.commit()
            for one, outcome in zip(batch, outcomes, strict=True):
                if one.job.ours:
                    os.unlink(one.job.path)
                if not one.outcome.done():
                    one.outcome.set_result(outcome)


def _outcome(one: _Waiting, result: Found | Failure) -> Found | Lost:
    if isinstance(result, Failure):
        return lost(one.job.url, result, one.asked, one.visit)
    return replace(result, asked=one.asked, host=one.visit.host, robots=one.visit.robots)


def lost(url: str, failure: Failure, asked: int, visit: Visit) -> Lost:
    """A picture that failed, with what asking for it took."""
    return Lost(
        url=url,
        reason=failure.reason,
        detail=failure.detail,
        asked=asked,
        host=visit.host,
        robots=visit.robots,
        attempts=visit.attempts,
    )
