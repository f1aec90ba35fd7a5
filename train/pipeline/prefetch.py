"""Which shards of elsewhere are worth having whole, and when: by the plan of the coming steps."""

import math

import numpy as np

from data.manifest import REMOTE_FILE, Manifest
from train.pipeline.plan import Plan
from train.pipeline.storage import Storage

# A request costs as much as so many bytes more in another one: 10 ms at 50 MB/s.
REQUEST_BYTES = 512 * 1024
STEPS_AHEAD = 64  # that are looked into: the plan keeps the packs of two epochs, not of a whole run


def whole_costs_less(
    *, samples: int, size: int, node_share: float, epochs: float, shards: int, open_shards: int, cache_bytes: int
) -> bool:
    """Whether fetching whole shards costs less than a range for each sample that a node reads.

    Args:
        samples, size: of a shard; its bytes.
        node_share: what part of the samples this node reads in an epoch.
        epochs: still to come, or a part of one.
        shards: of the set.
        open_shards: that the order of an epoch goes through side by side.
        cache_bytes: for all shards kept.
    """
    if min(2 * open_shards, shards) * size > cache_bytes:
        return False  # they would be taken away again before all their samples are read
    # What stays in the cache is fetched once for all epochs, what does not once for each.
    passes = epochs if shards * size <= cache_bytes else min(epochs, 1.0)
    reads = samples * node_share * passes
    return size <= reads * (size / samples + REQUEST_BYTES)


class Prefetch:
    """Names the shards of the coming steps in their order, as many ahead as the cache can take."""

    def __init__(self, plan: Plan, *, start_step: int, end_step: int, storage: Storage) -> None:
        """Arguments: as of the loader."""
        self._plan = plan
        self._step, self._end_step = start_step, end_step
        self._starts = np.array(plan.corpus.starts)
        self._first_shards = np.concatenate([[0], np.cumsum([len(one.shard_names) for one in plan.corpus.sets])])
        self._last_use: dict[int, int] = {}
        """Step at which each shard that was named is used last, as far as looked."""
        self._ahead = 0
        self._remote = [False] * len(plan.corpus.sets)
        epochs = (end_step - start_step) / max(plan.steps_in(0), 1)
        for place, one in enumerate(plan.corpus.sets):
            if not (one.folder.parent / REMOTE_FILE).is_file():
                continue
            listed = Manifest.load(one.folder.parent).shards[one.folder.name]
            size = max(shard["bytes"] for shard in listed)
            self._remote[place] = whole_costs_less(
                samples=math.ceil(one.samples / len(one.shard_names)),
                size=size,
                node_share=storage.node_share,
                epochs=epochs,
                shards=len(one.shard_names),
                open_shards=plan.spec.block_shards,
                cache_bytes=storage.cache_bytes,
            )
            self._ahead = max(self._ahead, storage.cache_bytes // 2 // size)

    def due(self, step: int) -> list[int]:
        """Shards, by their corpus numbers, that were not named yet and are to be fetched while `step` is read."""
        if not any(self._remote):
            return []
        named = []
        for shard in [shard for shard, last in self._last_use.items() if last < step]:
            del self._last_use[shard]
        end = min(self._end_step, step + STEPS_AHEAD)
        while self._step < end and len(self._last_use) < self._ahead:
            samples = [sample for pack in self._plan.batch(self._step).packs for sample in pack.samples]
            for shard in self._shards(samples):
                if shard not in self._last_use:
                    named.append(shard)
                self._last_use[shard] = self._step
            self._step += 1
        return named

    def _shards(self, samples: list[int]) -> list[int]:
        shards = []
        for sample in samples:
            place = int(np.searchsorted(self._starts, sample, side="right")) - 1
            if self._remote[place]:
                index = self._plan.corpus.indexes[place]
                shards.append(int(self._first_shards[place] + index.shard[sample - self._starts[place]]))
        return list(dict.fromkeys(shards))
