"""A pool of processes that never outlives the program, even one that was killed."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import forkserver
from multiprocessing.process import parent_process
from typing import TypeVar

from data.schema import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")


_ENVIRONMENT = {
    # One thread each: a worker's matrices are small, and there are as many workers as cores for them.
    "OPENBLAS_NUM_THREADS": "1",
    # Memory of up to a small picture's size is kept for the next one: to give it back each time, and to have it filled
    # with zeros again, took a tenth of a worker's time. A large picture's is given back as before.
    "MALLOC_MMAP_THRESHOLD_": str(1 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(4 << 20),
    "MALLOC_TOP_PAD_": str(1 << 20),
}
# What gives workers their work comes first: one that waits for it goes idle, or takes a file where it could take fifty.
_NICER = 5


class WorkerDied(UserError):
    """A worker process is gone."""


def start_forkserver() -> None:
    """Start the process that workers are forked from, if it does not run yet; it imports what they need meanwhile.

    Not forked from this process: it may have threads, and a fork would copy their locks as they are.
    """
    given = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update({name: value for name, value in _ENVIRONMENT.items() if given[name] is None})
    forkserver.set_forkserver_preload(["data.preloaded"])
    forkserver.ensure_running()
    for name, value in given.items():
        if value is None:
            del os.environ[name]


@contextmanager
def worker_pool(workers: int) -> Iterator[Executor]:
    """`workers` processes to submit functions to; 0 means a thread of this process.

    Raises WorkerDied when a process ends before its work, most likely killed for memory.
    """
    pool: Executor
    if workers == 0:
        pool = ThreadPoolExecutor(1)
    else:
        start_forkserver()
        pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("forkserver"), initializer=_start)
        # Started now and beside what the caller does next, which need not wait for their imports.
        threading.Thread(target=_wake, args=(pool, workers), daemon=True).start()
    try:
        yield pool
    except BrokenProcessPool as error:
        raise WorkerDied(
            "a worker process ended in the middle of its work, most likely killed because memory ran out; run the same "
            "command again with fewer --workers, what was finished is kept"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def in_order(pool: Executor, function: Callable[[Job], Result], jobs: Iterable[Job], ahead: int) -> Iterator[Result]:
    """The jobs' results in the order of the jobs, of which `ahead` at most are under way."""
    waiting: deque[Future[Result]] = deque()
    try:
        for job in jobs:
            waiting.append(pool.submit(function, job))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _wake(pool: Executor, workers: int) -> None:
    with suppress(RuntimeError):  # the pool was shut down already
        for _ in range(workers):
            pool.submit(os.getpid)


def _start() -> None:
    """Step back behind the parent, leave Ctrl-C to it, and end with it, which one that waits would not notice."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(_NICER)
    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
