"""Answers given without ever looking at a picture: one constant each, chosen on the training rows."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from train.score.fields import FieldValue
from train.score.metrics import PRICE_TOLERANCE, WITHIN, Metric


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """One constant answer. The first of a metric's baselines is the one to beat; others are shown beside it."""

    name: str
    value: FieldValue


def baselines(metric: Metric, field: str, kind: str, training: Sequence[FieldValue]) -> list[Baseline]:
    """The baselines of a field's metric, the one to beat first; none where the training rows have no value at all."""
    if not training:
        return []
    if kind == "number":
        prices = np.array([value for value in training if isinstance(value, float) and value > 0], dtype=np.float64)
        if not len(prices):
            return []
        best = best_within(prices) if metric is WITHIN else best_median_error(prices)
        return [
            Baseline(name="best constant", value=_short(best)),
            Baseline(name=f"median {field}", value=_short(float(np.median(prices)))),
        ]
    value, _ = max(sorted(Counter(map(str, training)).items()), key=lambda item: item[1])
    return [Baseline(name=f"{'majority' if kind == 'category' else 'commonest'} {field}", value=value)]


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
