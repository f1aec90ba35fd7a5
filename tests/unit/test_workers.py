"""The pool: work is done in other processes, and one that dies is an error, not a hang."""

import os
import subprocess
import sys

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


def test_a_worker_makes_arrays_without_pandas_and_has_it_where_it_is_asked_for() -> None:
    with worker_pool(1) as pool:
        made = "__import__('pyarrow').array(['a', None]).null_count, 'pandas' in __import__('sys').modules"
        assert pool.submit(eval, made).result() == (1, False)
        frame = "__import__('pyarrow').table({'a': [1, 2]}).to_pandas()['a'].tolist()"
        assert pool.submit(eval, frame).result() == [1, 2]
        back = "__import__('pyarrow').array(__import__('pandas').Series([1, None])).null_count"
        assert pool.submit(eval, back).result() == 1


def test_a_program_that_leaves_says_all_it_had_to_say_and_its_code() -> None:
    said = "import atexit; from data.light import leave; atexit.register(print, 'last'); print('first'); leave(3)"
    left = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=False)
    assert (left.returncode, left.stdout, left.stderr) == (3, "first\nlast\n", "")
