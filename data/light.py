"""Processes that run lightly: without pandas, little for the garbage collector to look through, no memory kept idle."""

import atexit
import ctypes
import gc
import os
import sys
from contextlib import suppress
from importlib.machinery import ModuleSpec
from typing import NoReturn

import pyarrow as pa

_COLLECT_AFTER = 50_000  # objects more than were let go; by default 700, of which a catalogue's rows make thousands


def run_lightly() -> None:
    """Spare this process work that nobody asked for; called once, when everything is imported.

    What is there by now is never garbage, so it is not looked through again (nor copied in forked processes by that).
    """
    leave_pandas_out()
    gc.freeze()
    gc.enable()
    gc.set_threshold(_COLLECT_AFTER)


def leave_pandas_out() -> None:
    """Have pyarrow make arrays without asking whether they come from pandas: importing it takes 0.2 s.

    It asks once, for its first array, and is told here that there is none. What needs pandas (`to_pandas`,
    `Table.from_pandas`) still finds it. Nothing changes where it is imported already.
    """
    if "pandas" in sys.modules:
        return
    sys.meta_path.insert(0, _NoPandas)
    try:
        pa.array([0])
    finally:
        sys.meta_path.remove(_NoPandas)


def trim() -> None:
    """Give the memory that was let go back to the system; glibc keeps what lies below a piece that is still held."""
    pa.default_memory_pool().release_unused()
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def leave(code: int) -> NoReturn:
    """End this process as `sys.exit` does, but leave its memory to the system: to take it apart takes a tenth of a
    second once much is imported."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class _NoPandas:
    """Finds every module but one."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name == "pandas":
            raise ModuleNotFoundError(name, name=name)
        return None
