"""Answers given without ever looking at a picture, chosen on the training rows: constants, and guesses by share."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from train.score.fields import FieldValue
from train.score.metrics import (
    ABSOLUTE_ERROR,
    ANLS,
    LOG_ERROR,
    MACRO_F1,
    MEDIAN_ERROR,
    PRICE_TOLERANCE,
    Metric,
    likeness,
)

MOST_TEXTS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """One way to answer. The first of a metric's baselines is the one to beat; others are shown beside it."""

    name: str
    value: FieldValue | None
    """The constant; None for guesses."""
    among: tuple[FieldValue, ...] = ()
    """What guesses are drawn from."""

    def answers(self, count: int, seed: int) -> list[FieldValue | None]:
        """What it says of so many rows; the same for a seed."""
        if not self.among:
            return [self.value] * count
        drawn = np.random.default_rng(seed).integers(0, len(self.among), count)
        return [self.among[place] for place in drawn.tolist()]


def baselines(metric: Metric, field: str, kind: str, training: Sequence[FieldValue]) -> list[Baseline]:
    """The baselines of a field's metric, the one to beat first; none where the training rows have no value at all."""
    if not training:
        return []
    if kind == "number":
        prices = np.array([value for value in training if isinstance(value, float) and value > 0], dtype=np.float64)
        if not len(prices):
            return []
        return [
            Baseline(name="best constant", value=_short(best_constant(metric, prices))),
            Baseline(name=f"median {field}", value=_short(float(np.median(prices)))),
        ]
    counts = Counter(map(str, training))
    value, _ = max(sorted(counts.items()), key=lambda item: item[1])
    common = Baseline(name=f"{'majority' if kind == 'category' else 'commonest'} {field}", value=value)
    if metric is MACRO_F1:
        # One class alone scores next to nothing here; guesses by the classes' shares score about 1 / classes.
        return [Baseline(name="guessed by share", value=None, among=tuple(training)), common]
    if metric is ANLS:
        return [Baseline(name=f"best {field}", value=most_alike(counts)), common]
    return [common]


def most_alike(counts: Counter[str]) -> str:
    """The text that is most like the training rows' texts: the best of the commonest, measured on as many of them."""
    kept = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MOST_TEXTS]
    return max(kept, key=lambda one: sum(count * likeness(text, one[0]) for text, count in kept))[0]


def best_constant(metric: Metric, prices: NDArray[np.float64]) -> float:
    """The constant of the best score over the positive prices [n]."""
    if metric is MEDIAN_ERROR:
        return best_median_error(prices)
    if metric is ABSOLUTE_ERROR:
        return middle_of_half(prices)
    if metric is LOG_ERROR:
        return float(np.exp(middle_of_half(np.log(prices))))
    return best_within(prices, metric.tolerance)


def middle_of_half(values: NDArray[np.float64]) -> float:
    """The constant with the smallest median absolute error: the middle of the shortest stretch with half of [n].

    Of an even number of rows the median lies between two: both are tried.
    """
    ordered = np.sort(values)
    found = []
    for enough in {(len(ordered) + 1) // 2, len(ordered) // 2 + 1}:
        widths = ordered[enough - 1 :] - ordered[: len(ordered) - enough + 1]
        first = int(widths.argmin())
        found.append(float((ordered[first] + ordered[first + enough - 1]) / 2))
    return min(found, key=lambda constant: float(np.median(np.abs(constant - ordered))))


def best_within(prices: NDArray[np.float64], tolerance: float = PRICE_TOLERANCE) -> float:
    """The constant that lies within ±tolerance of most of the positive prices [n]."""
    constant, _ = _most_covered(prices, tolerance)
    return constant


def best_median_error(prices: NDArray[np.float64]) -> float:
    """The constant with the smallest median absolute percentage error over the positive prices [n].

    The median error of a constant c is at most r where c lies in [p(1−r), p(1+r)] for half of the prices p; the
    smallest such r is found by bisection. Of an even number of rows the median lies between two: both are tried.
    """
    found = []
    for enough in {(len(prices) + 1) // 2, len(prices) // 2 + 1}:
        low, high = 0.0, 1.0  # at r = 1 a constant near zero satisfies every row
        for _ in range(50):
            middle = (low + high) / 2
            _, covered = _most_covered(prices, middle)
            low, high = (low, middle) if covered >= enough else (middle, high)
        found.append(_most_covered(prices, high)[0])
    return min(found, key=lambda constant: float(np.median(np.abs(constant - prices) / prices)))


def _most_covered(prices: NDArray[np.float64], tolerance: float) -> tuple[float, int]:
    """The middle of the first stretch that lies in most of the intervals [p(1−t), p(1+t)], and in how many it lies."""
    starts, ends = np.sort(prices * (1 - tolerance)), np.sort(prices * (1 + tolerance))
    covered = np.arange(1, len(starts) + 1) - np.searchsorted(ends, starts, side="left")
    best = int(covered.argmax())
    end = ends[np.searchsorted(ends, starts[best], side="left")]
    return float((starts[best] + end) / 2), int(covered[best])


def _short(value: float) -> float:
    """A constant to six significant digits: it is read by people."""
    return float(f"{value:.6g}")
