"""Global packing: samples in an epoch's order → packs of at most `pack_length` tokens, before ranks are dealt."""

from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np

from train.pipeline.order import PACKS, WINDOWS, Counts, Ints, random_bits, shuffled

# Samples whose lengths differ by less than this share are placed in random order: a strictly decreasing order would
# put the same samples together in every epoch. It costs at most one pack in seventy on photographs, and mostly nothing.
LENGTH_JITTER = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class PackList:
    """The packs of one epoch; pack p holds samples[starts[p] : starts[p + 1]]."""

    samples: Ints  # int64 [samples in packs]
    starts: Ints  # int64 [packs + 1]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def of(self, pack: int) -> Ints:
        """The samples of one pack; int64."""
        return self.samples[self.starts[pack] : self.starts[pack + 1]]


def best_fit(lengths: Ints, order: Ints, capacity: int) -> list[list[int]]:
    """Put each item into the fullest pack that still takes it, or into a new one.

    Args:
        lengths: int64 [n], each 1 … capacity.
        order: int64 [n], the order in which items are placed (decreasing lengths fill best).
        capacity: tokens a pack takes.
    Returns:
        The items of each pack, packs in the order in which they were opened.
    """
    sizes: list[int] = lengths.tolist()
    smallest = min(sizes, default=0)
    packs: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, pack), sorted; packs that take nothing more are not in it
    for item in order.tolist():
        place = bisect_left(room, (sizes[item], -1))
        if place == len(room):
            left, pack = capacity, len(packs)
            packs.append([])
        else:
            left, pack = room.pop(place)
        packs[pack].append(item)
        left -= sizes[item]
        if left >= smallest:
            insort(room, (left, pack))
    return packs


def pack_epoch(
    order: Ints, lengths: Counts, *, capacity: int, window: int, shuffle: bool, seed: int, epoch: int
) -> PackList:
    """Pack an epoch by best fit within windows of its order; windows do not depend on one another.

    Args:
        order: int64 [n], samples in the order of the epoch, none longer than `capacity`.
        lengths: int32 [samples], tokens of every sample of the index.
        capacity: `pack_length`, tokens.
        window: samples packed together. Larger fills better; smaller stays closer to the order.
        shuffle: packs of a window in random order, so that long samples do not come first; else in order of samples.
        seed, epoch: as for the order.
    """
    if window < 1:
        raise ValueError(f"window is {window}, must be at least 1")
    chunks: list[Ints] = []
    counts: list[int] = []
    for number, first in enumerate(range(0, len(order), window)):
        members = order[first : first + window]
        sizes = lengths[members].astype(np.int64)
        weight = sizes.astype(np.float64)
        if shuffle:
            weight *= 1 + LENGTH_JITTER * (random_bits(len(members), seed, epoch, WINDOWS, number) / 2.0**64)
        packs = best_fit(sizes, np.argsort(-weight, kind="stable"), capacity)
        if shuffle:
            packs = [packs[p] for p in shuffled(len(packs), seed, epoch, PACKS, number)]
        else:
            packs = sorted(sorted(pack) for pack in packs)
        chunks.extend(members[pack] for pack in packs)
        counts.extend(len(pack) for pack in packs)
    return PackList(
        samples=np.concatenate(chunks) if chunks else np.zeros(0, np.int64),
        starts=np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64),
    )
