"""Global packing: samples in an epoch's order → packs of at most `pack_length` tokens, before ranks are dealt."""

from bisect import bisect_left, insort
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from train.pipeline.order import PACKS, WINDOWS, Ints, random_bits, shuffled

# Lengths that differ by less than this share are placed in random order: a strictly decreasing order would put the same
# samples together in every epoch. It costs next to nothing.
LENGTH_JITTER = 0.1
NOTABLE = 1 / 400


@dataclass(frozen=True, slots=True, kw_only=True)
class PackList:
    """Packs one after the other; pack p holds samples[starts[p] : starts[p + 1]]."""

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


def _completion(count: Mapping[int, int], capacity: int) -> list[int]:
    """Lengths that fill a pack begun with the first of `count` as far as can be, the earliest ones preferred.

    Subset sum over the lengths that are left: bit t of `rooms` says that t tokens can be left over, and a length is
    looked at until none are. What all copies of a length reach is had by doubling: one, three, seven of them.
    """
    seed = next(iter(count))
    rooms = 1 << (capacity - seed)
    taken: list[tuple[int, int]] = []  # (rooms before a length was offered, the length)
    for length, copies in count.items():
        before, at_once = rooms, 1
        copies -= length == seed
        while copies:
            fewer = rooms | rooms >> length * at_once
            if fewer == rooms:
                break
            rooms = fewer
            copies -= at_once
            at_once = min(2 * at_once, copies)
        if rooms != before:
            taken.append((before, length))
        if rooms & 1:
            break
    left, lengths = (rooms & -rooms).bit_length() - 1, [seed]
    for before, length in reversed(taken):
        while not before >> left & 1:
            lengths.append(length)
            left += length
    return lengths


def fullest(lengths: Ints, order: Ints, capacity: int) -> list[list[int]]:
    """Begin each pack with the first item left and complete it as far as can be; as many like it as there are items.

    Where few items fit a pack this wastes less than best fit, which looks at one item at a time. In increasing order
    the large items end up among themselves, which wins where a few small ones fit together and large ones do not.

    Args, returns: as for `best_fit`; items of one length are to follow one another in `order`.
    """
    sizes: list[int] = lengths.tolist()
    members: dict[int, list[int]] = {}
    for item in order.tolist():
        members.setdefault(sizes[item], []).append(item)
    count = {length: len(items) for length, items in members.items()}
    packs: list[list[int]] = []
    while count:
        pattern = _completion(count, capacity)
        needed = {length: pattern.count(length) for length in pattern}
        times = min(count[length] // number for length, number in needed.items())
        packs.extend([members[length].pop() for length in pattern] for _ in range(times))
        for length, number in needed.items():
            count[length] -= number * times
            if not count[length]:
                del count[length]
    return packs


def pack_items(lengths: Ints, order: Ints, capacity: int) -> list[list[int]]:
    """Pack by best fit, or by `fullest`, in decreasing or increasing order, where that saves a notable share of packs.

    Best fit is kept where it is about as good: it spreads the short items over all packs, which evens out their work.

    Args, returns: as for `fullest`, `order` by decreasing length.
    """
    packs = best_fit(lengths, order, capacity)
    at_least = -(-int(lengths.sum()) // capacity)
    for way in (order, order[::-1]):
        if len(packs) * (1 - NOTABLE) > at_least:
            other = fullest(lengths, way, capacity)
            packs = other if len(other) < len(packs) * (1 - NOTABLE) else packs
    return packs


def pack_window(
    members: Ints, lengths: Ints, *, capacity: int, shuffle: bool, seed: int, epoch: int, window: int
) -> PackList:
    """Pack one window of an epoch's order; windows do not depend on one another.

    Args:
        members: int64 [n], samples in the order of the epoch.
        lengths: int64 [n], their tokens, none more than `capacity`.
        capacity: `pack_length`, tokens.
        shuffle: packs in random order, so that long samples do not come first; else in order of samples.
        seed, epoch, window: what the randomness depends on.
    """
    values, kind = np.unique(lengths, return_inverse=True)
    if shuffle:
        weight = values * (1 + LENGTH_JITTER * (random_bits(len(values), seed, epoch, WINDOWS, window) / 2.0**64))
    else:
        weight = values.astype(np.float64)
    # Members come in random order already: a stable sort leaves those of one length so.
    packs = pack_items(lengths, np.argsort(-weight[kind], kind="stable"), capacity)
    if shuffle:
        packs = [packs[p] for p in shuffled(len(packs), seed, epoch, PACKS, window)]
    else:
        packs = sorted(sorted(pack) for pack in packs)
    chosen = np.fromiter((item for pack in packs for item in pack), np.int64, len(members))
    starts = np.zeros(len(packs) + 1, np.int64)
    np.cumsum([len(pack) for pack in packs], out=starts[1:])
    return PackList(samples=members[chosen], starts=starts)
