"""Ranks as threads of one process, for what needs several of them and no collectives of torch."""

import threading
from collections.abc import Callable
from typing import Any

import torch

from train.distributed import Place, World


class ThreadWorld(World):
    """A rank whose objects go to the others through a list they share."""

    def gather_objects(self, value: Any) -> list[Any]:
        """Every rank's object in the order of the ranks."""
        barrier, box = self.group
        box[self.rank] = value
        barrier.wait()
        found = list(box)
        barrier.wait()
        return found

    def from_first(self, work: Callable[[], Any]) -> Any:
        """Do `work` on rank 0 alone and give every rank its result, or what it raised."""
        found: tuple[Any, Exception | None] = (None, None)
        if self.first:
            try:
                found = (work(), None)
            except Exception as error:
                found = (None, error)
        result, raised = self.gather_objects(found)[0]
        if raised is not None:
            raise raised
        return result


def on_ranks(ranks: int, work: Callable[[World], Any]) -> list[Any]:
    """Do `work` on so many ranks at once; its results, or what it raised, in the order of the ranks."""
    group = (threading.Barrier(ranks), [None] * ranks)
    results: list[Any] = [None] * ranks

    def run(rank: int) -> None:
        place = Place(rank=rank, local_rank=rank, world_size=ranks, local_world_size=ranks)
        try:
            results[rank] = work(ThreadWorld(place=place, device=torch.device("cpu"), group=group))
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
