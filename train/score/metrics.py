"""What is measured for each kind of field: a number or two a row, and how rows become a score."""

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from train.score.fields import FieldValue
from train.score.intervals import Statistic

PRICE_TOLERANCE = 0.10
# Below this likeness an answer is another one and counts nothing: the threshold of ANLS (arXiv 1907.00490).
ANLS_THRESHOLD = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A score of one field."""

    key: str
    label: str  # follows the field's name: "category: accuracy"
    statistic: Statistic
    higher_is_better: bool
    unit: str = "percent"  # or "plain": in the field's own unit, or none
    tolerance: float = PRICE_TOLERANCE  # of a number that counts as right


ACCURACY = Metric(key="accuracy", label="accuracy", statistic="mean", higher_is_better=True)
MACRO_F1 = Metric(key="macro_f1", label="macro-F1", statistic="macro_f1", higher_is_better=True)
EXACT = Metric(key="exact", label="exact match", statistic="mean", higher_is_better=True)
NORMALISED = Metric(key="normalised", label="normalised match", statistic="mean", higher_is_better=True)
ANLS = Metric(key="anls", label="ANLS", statistic="mean", higher_is_better=True)
WITHIN = Metric(key="within_10_percent", label="within 10 %", statistic="mean", higher_is_better=True)
WITHIN_5 = Metric(key="within_5_percent", label="within 5 %", statistic="mean", higher_is_better=True, tolerance=0.05)
WITHIN_25 = Metric(
    key="within_25_percent", label="within 25 %", statistic="mean", higher_is_better=True, tolerance=0.25
)
MEDIAN_ERROR = Metric(
    key="median_percentage_error", label="median percentage error", statistic="median", higher_is_better=False
)
ABSOLUTE_ERROR = Metric(
    key="median_absolute_error",
    label="median absolute error",
    statistic="median",
    higher_is_better=False,
    unit="plain",
)
LOG_ERROR = Metric(
    key="median_log_error", label="median log error", statistic="median", higher_is_better=False, unit="plain"
)
SHARES_WITHIN = (WITHIN_5, WITHIN, WITHIN_25)

METRICS: dict[str, tuple[Metric, ...]] = {
    "category": (ACCURACY, MACRO_F1),
    "text": (EXACT, NORMALISED, ANLS),
    "number": (WITHIN, WITHIN_5, WITHIN_25, MEDIAN_ERROR, ABSOLUTE_ERROR, LOG_ERROR),
}
LEADING: dict[str, tuple[Metric, ...]] = {
    "category": (ACCURACY,),
    "text": (EXACT,),
    "number": (WITHIN, MEDIAN_ERROR),
}
"""What is also measured by category and price band."""


def is_scored(metric: Metric, truth: FieldValue | None) -> bool:
    """Whether a row counts for a metric: it has a truth, for a percentage not zero, for a logarithm above zero."""
    if metric is LOG_ERROR:
        return isinstance(truth, float) and truth > 0
    return truth is not None and not (metric is MEDIAN_ERROR and truth == 0)


def percentage_error(truth: float, predicted: FieldValue | None) -> float:
    """|predicted − truth| / |truth|; infinite where the answer could not be read."""
    return abs(predicted - truth) / abs(truth) if isinstance(predicted, float) and truth else float("inf")


def absolute_error(truth: float, predicted: FieldValue | None) -> float:
    """|predicted − truth|; infinite where the answer could not be read."""
    return abs(predicted - truth) if isinstance(predicted, float) else float("inf")


def log_error(truth: float, predicted: FieldValue | None) -> float:
    """|ln(predicted / truth)|; infinite for what could not be read and for what is not above zero."""
    return abs(math.log(predicted / truth)) if isinstance(predicted, float) and predicted > 0 else float("inf")


ERRORS = {MEDIAN_ERROR.key: percentage_error, ABSOLUTE_ERROR.key: absolute_error, LOG_ERROR.key: log_error}


def is_right(
    kind: str, truth: FieldValue | None, predicted: FieldValue | None, tolerance: float = PRICE_TOLERANCE
) -> bool:
    """Whether one answer is right: equal, or for a number within `tolerance` of the truth (the ends belong to it)."""
    if truth is None or predicted is None:
        return False
    if kind == "number":
        # Prices are decimal: without the last term 90.0 would miss 100.0 − 10 % by rounding alone.
        return abs(float(predicted) - float(truth)) <= tolerance * abs(float(truth)) * (1 + 1e-12)
    return predicted == truth


def normalised(text: FieldValue | None) -> str:
    """Text without case, signs, accents' spellings and runs of white space: what a careless reader takes as equal."""
    plain = unicodedata.normalize("NFKC", str(text or "")).casefold()
    kept = (" " if unicodedata.category(letter)[0] in "PSZC" else letter for letter in plain)
    return " ".join("".join(kept).split())


def distance(one: str, other: str) -> int:
    """Levenshtein's distance, by the bits of two whole numbers (Hyyrö 2003)."""
    if not one:
        return len(other)
    places: dict[str, int] = {}
    for place, letter in enumerate(one):
        places[letter] = places.get(letter, 0) | 1 << place
    mask, last = (1 << len(one)) - 1, 1 << (len(one) - 1)
    up, down, found = mask, 0, len(one)
    for letter in other:
        same = places.get(letter, 0)
        across = (((same & up) + up) ^ up) | same | down
        right, left = down | (~(across | up) & mask), up & across
        found += bool(right & last) - bool(left & last)
        right, left = (right << 1 | 1) & mask, (left << 1) & mask
        up, down = left | (~(across | right) & mask), right & across
    return found


def likeness(truth: FieldValue | None, predicted: FieldValue | None) -> float:
    """1 − distance / length, letters' case aside; 0 below ANLS_THRESHOLD and for what could not be read."""
    if truth is None or predicted is None:
        return 0.0
    one, other = str(truth).casefold(), str(predicted).casefold()
    longest = max(len(one), len(other))
    alike = 1.0 - distance(one, other) / longest if longest else 1.0
    return alike if alike >= ANLS_THRESHOLD else 0.0


def row_values(
    metric: Metric, kind: str, truths: Sequence[FieldValue | None], predicted: Sequence[FieldValue | None]
) -> NDArray[np.float64]:
    """One number a row [n]: 1 right, 0 wrong, a likeness, or an error. The rows must be scored ones.

    For macro-F1 two numbers a row [n, 2]: the class that is true and the one that was said, −1 for none of the true.
    """
    pairs = list(zip(truths, predicted, strict=True))
    if metric is MACRO_F1:
        classes = {name: code for code, name in enumerate(sorted(set(map(str, truths))))}
        codes = [(classes[str(truth)], -1 if said is None else classes.get(str(said), -1)) for truth, said in pairs]
        return np.array(codes, dtype=np.float64).reshape(-1, 2)
    if metric is ANLS:
        return np.array([likeness(truth, said) for truth, said in pairs], dtype=np.float64)
    if metric is NORMALISED:
        return np.array(
            [said is not None and normalised(truth) == normalised(said) for truth, said in pairs], dtype=np.float64
        )
    if metric.key in ERRORS:
        error = ERRORS[metric.key]
        return np.array([error(float(truth or 0), said) for truth, said in pairs], dtype=np.float64)
    return np.array([is_right(kind, truth, said, metric.tolerance) for truth, said in pairs], dtype=np.float64)
