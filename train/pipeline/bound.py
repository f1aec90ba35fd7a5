"""How few packs samples of given lengths can need at best: what the fill that was reached is measured by."""

import math

import numpy as np
from numpy.typing import NDArray

from train.pipeline.order import Ints

Floats = NDArray[np.float64]

# Lengths told apart in the linear programme; where there are more, neighbours count as the shortest of them, which
# leaves the bound true and makes it a little lower.
CLASSES = 96
# Samples shorter than this share of a pack are left out of the linear programme: they fill gaps, they make none.
SMALLEST = 1 / 24
PIVOTS = 600
CLOSE = 1e-4


def fewest_packs(counts: Ints, capacity: int, possible: int) -> int:
    """A true lower bound on the packs that samples need, by whatever way of packing.

    The larger of two bounds: all tokens over the capacity, and the linear relaxation of the cutting-stock problem
    (Gilmore and Gomory 1961) over the lengths that are not small. The relaxation's value is approached from below by
    Farley's bound (1990), so that the result is true even where the search is left early.

    Args:
        counts: int64 [longest + 1], samples of each length; none longer than `capacity`.
        capacity: tokens a pack takes.
        possible: packs that are known to do; the search ends where it has shown that fewer do not.
    """
    lengths = np.flatnonzero(counts)
    by_tokens = math.ceil(int((lengths * counts[lengths]).sum()) / capacity)
    large = lengths[lengths >= max(1, capacity * SMALLEST)]
    if by_tokens >= possible or not len(large):
        return by_tokens
    edges = np.unique(np.linspace(0, len(large), min(CLASSES, len(large)) + 1).astype(np.int64)[:-1])
    demand = np.add.reduceat(counts[large], edges).astype(np.float64)
    return max(by_tokens, math.ceil(_relaxed(large[edges], demand, capacity, by_tokens, possible) - 1e-6))


def _relaxed(lengths: Ints, demand: Floats, capacity: int, known: int, possible: int) -> float:
    """Farley's lower bound on packs of `demand` items of each length, by column generation; left early where it is
    shown to reach `possible`, or that it cannot pass `known`."""
    # Column j of the basis is a pattern: how many items of each length a pack holds. At first one length a pattern.
    inverse = np.diag(1.0 / (capacity // lengths))
    amounts = inverse @ demand
    bound = 0.0
    for _ in range(PIVOTS):
        prices = inverse.sum(axis=0)
        value, pattern = _best_pattern(lengths, prices, capacity)
        total = float(prices @ demand)
        bound = max(bound, total / value)
        if total <= known or bound > possible - 1 or bound >= total * (1 - CLOSE):
            break
        change = inverse @ pattern
        rising = change > 1e-9
        steps = np.full(len(lengths), np.inf)
        steps[rising] = np.maximum(amounts[rising], 0) / change[rising]
        leaving = int(np.argmin(steps))
        amounts = amounts - steps[leaving] * change
        amounts[leaving] = steps[leaving]
        row = inverse[leaving] / change[leaving]
        inverse = inverse - np.outer(change, row)
        inverse[leaving] = row
    return bound


def _best_pattern(lengths: Ints, prices: Floats, capacity: int) -> tuple[float, Floats]:
    """The pattern that is worth most at these prices, and its worth (at least 1, what one priced pattern is worth)."""
    worth = np.zeros(capacity + 1)
    priced = [(int(length), float(price)) for length, price in zip(lengths, prices, strict=True) if price > 1e-12]
    for length, price in priced:
        # One more item of this length, block by block: each block looks at the one before, which is finished.
        for start in range(length, capacity + 1, length):
            stop = min(start + length, capacity + 1)
            np.maximum(worth[start:stop], worth[start - length : stop - length] + price, out=worth[start:stop])
    pattern = np.zeros(len(lengths))
    left = capacity
    while left >= lengths[0]:
        fitting = int(np.searchsorted(lengths, left, side="right"))
        gains = worth[left - lengths[:fitting]] + prices[:fitting] - worth[left]
        best = int(np.argmax(gains))
        if gains[best] < -1e-9 or worth[left] <= 0:
            break
        pattern[best] += 1
        left -= int(lengths[best])
    return max(float(worth[capacity]), 1.0), pattern
