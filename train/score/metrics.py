"""What is measured for each kind of field: one number a row, and how rows become a score."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from train.score.fields import FieldValue
from train.score.intervals import Statistic

PRICE_TOLERANCE = 0.10


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A score of one field. All scores are fractions, shown as per cent."""

    key: str
    label: str  # follows the field's name: "category: accuracy"
    statistic: Statistic
    higher_is_better: bool


ACCURACY = Metric(key="accuracy", label="accuracy", statistic="mean", higher_is_better=True)
EXACT = Metric(key="exact", label="exact match", statistic="mean", higher_is_better=True)
WITHIN = Metric(key="within_10_percent", label="within 10 %", statistic="mean", higher_is_better=True)
MEDIAN_ERROR = Metric(
    key="median_percentage_error", label="median absolute error", statistic="median", higher_is_better=False
)

METRICS: dict[str, tuple[Metric, ...]] = {
    "category": (ACCURACY,),
    "text": (EXACT,),
    "number": (WITHIN, MEDIAN_ERROR),
}


def is_scored(metric: Metric, truth: FieldValue | None) -> bool:
    """Whether a row counts for a metric: it has a truth, and for a percentage one that is not zero."""
    return truth is not None and not (metric is MEDIAN_ERROR and truth == 0)


def percentage_error(truth: float, predicted: FieldValue | None) -> float:
    """|predicted − truth| / |truth|; infinite where the answer could not be read."""
    return abs(predicted - truth) / abs(truth) if isinstance(predicted, float) and truth else float("inf")


def is_right(kind: str, truth: FieldValue | None, predicted: FieldValue | None) -> bool:
    """Whether one answer is right: equal, or for a number within 10 % of the truth (the ends belong to it)."""
    if truth is None or predicted is None:
        return False
    if kind == "number":
        # Prices are decimal: without the last term 90.0 would miss 100.0 − 10 % by rounding alone.
        return abs(float(predicted) - float(truth)) <= PRICE_TOLERANCE * abs(float(truth)) * (1 + 1e-12)
    return predicted == truth


def row_values(
    metric: Metric, kind: str, truths: Sequence[FieldValue | None], predicted: Sequence[FieldValue | None]
) -> NDArray[np.float64]:
    """One number a row [n]: 1 right, 0 wrong, or the percentage error as a fraction. The rows must be scored ones."""
    pairs = zip(truths, predicted, strict=True)
    if metric is MEDIAN_ERROR:
        return np.array([percentage_error(float(truth or 0), answer) for truth, answer in pairs], dtype=np.float64)
    return np.array([is_right(kind, truth, answer) for truth, answer in pairs], dtype=np.float64)
