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


def work_of(tokens: Ints, crops: int) -> int:
    """What a pack of segments of so many tokens each costs, in operations of the decoder's attention a layer."""
    total = int(tokens.sum())
    return total * WORK_PER_TOKEN + int((tokens * tokens).sum()) // 2 * WORK_PER_PAIR + crops * WORK_PER_CROP


def deal_packs(packs: Sequence[Pack], world: int) -> list[list[Pack]]:
    """Deal a batch's packs to ranks so that they carry equal work, in each micro-step and in sum.

    Ranks wait for one another in every layer, so a micro-step takes as long as its heaviest pack: packs of like weight
    go into one micro-step, and within it the heaviest to the rank that has carried least.

    Returns:
        [micro-step][rank] packs, ceil(packs / world) micro-steps; missing packs are empty ones.
    """
    heaviest_first = sorted(packs, key=lambda pack: (-pack.work, pack.number))
    carried = [0] * world
    dealt = []
    for first in range(0, len(packs), world):
        row = heaviest_first[first : first + world]
        row += [
            Pack(number=first + place, samples=(), tokens=0, labels=0, crops=0, work=0)
            for place in range(len(row), world)
        ]
        by_rank: list[Pack] = [row[0]] * world
        for pack, rank in zip(row, sorted(range(world), key=lambda rank: (carried[rank], rank)), strict=True):
            by_rank[rank] = pack
            carried[rank] += pack.work
        dealt.append(by_rank)
    return dealt


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
