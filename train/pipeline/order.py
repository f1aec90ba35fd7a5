"""The order of an epoch: a seeded shuffle that mixes across shards and keeps a bounded number of them open.

Shuffles sort 64-bit keys drawn from Philox instead of calling `Generator.permutation`: NumPy keeps the raw stream of a
bit generator the same in all versions, but not what a Generator makes of it; a stable sort gives one answer on every
CPU.
"""

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Counts = NDArray[np.int32]

# What a stream of random bits is for: the third word of its key.
SHARDS, SAMPLES, WINDOWS, PACKS, MIXING = range(5)
KEPT_BLOCKS = 4


def random_bits(count: int, *key: int) -> NDArray[np.uint64]:
    """`count` 64-bit words that depend on `key` alone, e.g. (seed, epoch, purpose, block)."""
    return np.random.Philox(np.random.SeedSequence(key)).random_raw(count)


def shuffled(count: int, *key: int) -> Ints:
    """A permutation of 0 … count − 1 that depends on `key` alone; int64 [count]."""
    return np.argsort(random_bits(count, *key), kind="stable").astype(np.int64)


class Stream:
    """The samples of one source, pass after pass without end, each pass in an order of its own.

    A pass shuffles the shards, cuts them into blocks of at most `block_shards`, and shuffles the samples of each block:
    a reader that follows has the shards of one block open (of two where it goes over from one to the next), a sample
    may land anywhere, and up to `block_shards` shards the shuffle is a full one. Any stretch can be asked for; only the
    blocks it touches are computed.
    """

    def __init__(
        self, shard_samples: Sequence[int], *, seed: int, block_shards: int, shuffle: bool, number: int
    ) -> None:
        """
        Args:
            shard_samples: number of samples of each shard.
            seed: non-negative; each (seed, pass, number) has its own order.
            block_shards: shards mixed with one another, ≥ 1.
            shuffle: False gives every pass in the order of the shards.
            number: of the source.
        """
        sizes = np.asarray(shard_samples, np.int64)
        self.samples = int(sizes.sum())
        self._sizes = sizes
        self._starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self._seed, self._number, self._shuffle = seed, number, shuffle
        blocks = -(-len(sizes) // block_shards)
        self._cuts = [len(sizes) * block // blocks for block in range(blocks + 1)] if blocks else [0]
        self._blocks: OrderedDict[tuple[int, int], Ints] = OrderedDict()
        self._passes: OrderedDict[int, tuple[Ints, Ints]] = OrderedDict()

    def slice(self, start: int, stop: int) -> Ints:
        """Samples `start` … `stop` − 1 of the endless stream, int64, numbered within the source."""
        parts: list[Ints] = []
        while start < stop:
            number, place = divmod(start, self.samples)
            end = min(place + stop - start, self.samples)
            parts.append(self._of_pass(number, place, end))
            start += end - place
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def _of_pass(self, number: int, start: int, stop: int) -> Ints:
        if not self._shuffle:
            return np.arange(start, stop, dtype=np.int64)
        permuted, ends = self._pass(number)
        first = int(np.searchsorted(ends, start, side="right"))
        last = int(np.searchsorted(ends, stop, side="left"))
        parts = []
        for block in range(first, last + 1):
            begin = int(ends[block - 1]) if block else 0
            parts.append(self._block(number, block, permuted)[max(start - begin, 0) : stop - begin])
        return np.concatenate(parts)

    def _pass(self, number: int) -> tuple[Ints, Ints]:
        """The shards of a pass in their order, and where each of its blocks ends."""
        if number not in self._passes:
            permuted = shuffled(len(self._sizes), self._seed, number, SHARDS, self._number)
            totals = np.concatenate([[0], np.cumsum(self._sizes[permuted])])
            self._passes[number] = (permuted, totals[self._cuts[1:]])
            if len(self._passes) > KEPT_BLOCKS:
                self._passes.popitem(last=False)
        return self._passes[number]

    def _block(self, number: int, block: int, permuted: Ints) -> Ints:
        if (number, block) not in self._blocks:
            members = permuted[self._cuts[block] : self._cuts[block + 1]]
            samples = np.concatenate([np.arange(self._starts[shard], self._starts[shard + 1]) for shard in members])
            order = shuffled(len(samples), self._seed, number, SAMPLES, self._number, block)
            self._blocks[number, block] = samples[order]
            if len(self._blocks) > KEPT_BLOCKS:
                self._blocks.popitem(last=False)
        return self._blocks[number, block]


class EpochOrder:
    """The order of all epochs, window by window.

    An epoch takes its number of draws from each source's stream, goes on where the epoch before left that stream, and
    is cut into windows that each hold the same share of every source.
    """

    def __init__(
        self, streams: Sequence[Stream], draws: Sequence[int], *, window: int, seed: int, shuffle: bool
    ) -> None:
        """
        Args:
            streams: of the sources, whose samples are numbered one source after another.
            draws: samples that an epoch takes from each stream.
            window: samples of a window, about.
            seed, shuffle: as for the streams.
        """
        self._streams, self._draws = list(streams), list(draws)
        self._firsts = np.concatenate([[0], np.cumsum([stream.samples for stream in streams])]).tolist()
        self._seed, self._shuffle = seed, shuffle
        self.windows = max(1, -(-sum(draws) // window))
        """Of each epoch."""

    def window(self, epoch: int, number: int) -> Ints:
        """The samples of one window, int64, in their order."""
        parts = []
        for stream, draws, first in zip(self._streams, self._draws, self._firsts, strict=False):
            start, stop = (draws * edge // self.windows for edge in (number, number + 1))
            begun = epoch * draws
            parts.append(stream.slice(begun + start, begun + stop) + first)
        members = np.concatenate(parts)
        if self._shuffle and len(parts) > 1:
            members = members[shuffled(len(members), self._seed, epoch, MIXING, number)]
        return members
