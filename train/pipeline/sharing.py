"""Numbers that take long to compute: each rank computes its share once, all get the whole, a file keeps it."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from data.whole import whole_file
from train.pipeline.order import Counts

Result = TypeVar("Result")


class Ranks(Protocol):
    """The processes of a job, as far as sharing goes; `train.distributed.World` is one."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def agree(self, work: Callable[[], Result]) -> Result: ...

    def gather_objects(self, value: Any) -> list[Any]: ...


class Alone:
    """One process by itself."""

    rank = 0
    size = 1

    def agree(self, work: Callable[[], Result]) -> Result:
        """Do the work."""
        return work()

    def gather_objects(self, value: Any) -> list[Any]:
        """The value, as the only one."""
        return [value]


def kept_table(file: Path | None, shape: tuple[int, int], ranks: Ranks) -> Counts | None:
    """A table from its file, or None where a rank does not find it there whole; called by every rank alike."""
    found = _load(file, shape)
    return found if all(ranks.gather_objects(found is not None)) else None


def shared_table(
    file: Path | None,
    shape: tuple[int, int],
    work: Callable[[int, int], Counts],
    ranks: Ranks,
    *,
    keep: Callable[[Counts], bool] = lambda _: True,
    say: str | None = None,
) -> Counts:
    """A table by columns, found in its file or computed by all ranks together; called by every rank alike.

    Args:
        file: where the table is kept, as .npy, and mapped from; None keeps none.
        shape: (rows, columns).
        work: computes columns start … stop − 1, int32 [rows, stop − start].
        ranks: who shares the work, column stretches of like size each.
        keep: whether a computed table is worth keeping.
        say: what the columns are, to print how quickly they were computed; None prints nothing.
    Returns:
        int32 [rows, columns].
    """
    found = kept_table(file, shape, ranks)
    if found is not None:
        return found
    begun = time.monotonic()
    start, stop = (shape[1] * edge // ranks.size for edge in (ranks.rank, ranks.rank + 1))
    parts = ranks.gather_objects(ranks.agree(lambda: work(start, stop)))
    table: Counts = np.concatenate(parts, axis=1)
    if say and ranks.rank == 0 and (seconds := time.monotonic() - begun) > 1:
        print(f"{say}: {shape[1]:,} in {seconds:.1f} s, {shape[1] / seconds:,.0f} a second", flush=True)
    if file is None or not keep(table):
        return table
    # Rank 0 writes; ranks of another machine see its file, or, where the folder is not shared, write one there.
    ranks.agree(lambda: _save(file, table) if ranks.rank == 0 else None)
    ranks.agree(lambda: None if file.exists() else _save(file, table))
    mapped = _load(file, shape)
    return table if mapped is None else mapped


def _load(file: Path | None, shape: tuple[int, int]) -> Counts | None:
    """A kept table, mapped; None if there is none or the file is damaged (it is then computed and written again)."""
    if file is None:
        return None
    try:
        table = np.load(file, mmap_mode="r")
    except (FileNotFoundError, EOFError, ValueError):
        return None
    # As a plain array: looking into a `memmap` takes several times as long.
    return table.view(np.ndarray) if table.shape == shape and table.dtype == np.int32 else None


def _save(file: Path, table: Counts) -> None:
    with whole_file(file) as stream:
        np.save(stream, table)
