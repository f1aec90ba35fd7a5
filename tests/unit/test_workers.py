"""The pool: work is done in other processes, and one that dies is an error, not a hang."""

import os

import pytest

from data.workers import WorkerDied, worker_pool


def test_work_is_done_in_processes_or_in_this_one() -> None:
    with worker_pool(0) as pool:
        assert pool.submit(os.getpid).result() == os.getpid()
    with worker_pool(1) as pool:
        assert pool.submit(os.getpid).result() != os.getpid()


def test_a_worker_that_dies_is_said_so() -> None:
    with pytest.raises(WorkerDied, match="fewer --workers"), worker_pool(1) as pool:
        pool.submit(os._exit, 1).result()
