"""Dealing a batch's packs to ranks, so that they carry equal work."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from train.pipeline.order import Ints

# What a pack costs. A token through the decoder's matrices takes 2 × 3.7e9 operations; each token it attends to
# 4 × 3,072 × 32 layers more; a crop through the vision tower 2 × 0.3e9 × 577, as much as 47 tokens.
WORK_PER_TOKEN = 18_800
WORK_PER_PAIR = 1
WORK_PER_CROP = 47 * WORK_PER_TOKEN
OPERATIONS_OF_WORK = 4 * 3072 * 32
"""Floating point operations forward of a unit of work, for the published model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """Samples that are trained as one row, and what they weigh."""

    number: int
    """Place in the global batch; packs added to even out the ranks count on from its last one."""
    samples: tuple[int, ...]
    """Numbers in the corpus; none in an added pack."""
    tokens: int
    labels: int
    """Supervised tokens."""
    crops: int
    """Global views included."""
    work: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GlobalBatch:
    """What one optimiser step trains, on however many ranks."""

    step: int
    epoch: int
    packs: tuple[Pack, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroStep:
    """One rank's share of one forward and backward; the chunk counts are the same on all ranks."""

    pack: Pack
    crop_chunks: int
    """Calls of the vision tower; 0 only where the whole corpus has no picture."""
    label_chunks: int
    """Calls of the output head, at least 1."""


def work_of(tokens: Ints, crops: int) -> int:
    """What a pack of segments of so many tokens each costs, in operations of the decoder's attention a layer."""
    total = int(tokens.sum())
    return total * WORK_PER_TOKEN + int((tokens * tokens).sum()) // 2 * WORK_PER_PAIR + crops * WORK_PER_CROP


def deal_packs(packs: Sequence[Pack], world: int) -> list[list[Pack]]:
    """Deal a batch's packs to ranks so that they carry equal work, in each micro-step and in sum.

    Ranks wait for one another in every layer, so a micro-step takes as long as its heaviest pack: packs of like weight
    go into one micro-step, and within it the heaviest to the rank that has carried least. Then packs are exchanged
    while that eases the rank that carries most and no micro-step becomes longer.

    Returns:
        [micro-step][rank] packs, ceil(packs / world) micro-steps; missing packs are empty ones.
    """
    heaviest_first = sorted(packs, key=lambda pack: (-pack.work, pack.number))
    if world == 1:
        return [[pack] for pack in heaviest_first]
    heaviest_first += [
        Pack(number=number, samples=(), tokens=0, labels=0, crops=0, work=0)
        for number in range(len(packs), -(-len(packs) // world) * world)
    ]
    work = np.array([pack.work for pack in heaviest_first], np.int64).reshape(-1, world)
    carried = np.zeros(world, np.int64)
    dealt = np.arange(work.size).reshape(work.shape)
    for row, values in zip(dealt, work, strict=True):
        row[np.argsort(carried, kind="stable")] = row.copy()
        carried += values[row - row.min()]
    _exchange(dealt, work.ravel(), carried)
    return [[heaviest_first[place] for place in row] for row in dealt.tolist()]


def _exchange(dealt: Ints, work: Ints, carried: Ints) -> None:
    """Exchange packs of the rank that carries most with lighter ones of other ranks, in place, as long as that helps.

    Args:
        dealt: int64 [micro-steps, ranks], places in `work`.
        work: int64, of each pack.
        carried: int64 [ranks], the sums.
    """
    there = work[dealt]
    longest = there.max(axis=1)
    for _ in range(2 * dealt.shape[1]):
        most = int(carried.argmax())
        # By how much each pack of that rank [i] is heavier than each of all packs [j, rank], whose place it would take.
        eased = there[:, most, None, None] - there[None]
        fits = there[:, most, None, None] <= longest[None, :, None]
        after = np.maximum(carried[most] - eased, carried + eased)
        after[(eased <= 0) | ~fits] = carried[most]
        found = int(after.argmin())
        if after.flat[found] >= carried[most]:
            break
        row, other, rank = (int(place) for place in np.unravel_index(found, after.shape))
        carried[[most, rank]] += np.array([-1, 1]) * eased[row, other, rank]
        for table in (dealt, there):
            table[row, most], table[other, rank] = table[other, rank], table[row, most]


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """How evenly a dealing loads the ranks."""

    sums: float
    """The most any rank carries over a step, by the mean."""
    waiting: float
    """What the step takes where ranks wait for one another in every micro-step, by the mean."""


def balance(rows: Sequence[Sequence[Pack]]) -> Balance:
    """Of the micro-steps of one step, each a pack a rank."""
    work = np.array([[pack.work for pack in row] for row in rows], np.float64)
    mean = work.sum() / work.shape[1]
    return Balance(sums=float(work.sum(axis=0).max() / mean), waiting=float(work.max(axis=1).sum() / mean))
