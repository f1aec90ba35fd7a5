"""The leading scores by category and by price band."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from train.score.metrics import LEADING
from train.score.scores import Answers, Estimate, Truth, rows_of, shown

MOST_CATEGORIES = 16
BANDS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """Some of the samples, and their scores."""

    by: str
    """The field they are alike in."""
    value: str
    """What they have there: a category, or a band of numbers."""
    n: int
    scores: dict[str, Estimate]
    """By the metric's label, "price: within 10 %"."""
    units: dict[str, str]


def slice_scores(
    fields: Mapping[str, str],
    truths: Sequence[Truth],
    answers: Sequence[Answers],
    training: Sequence[Answers],
    seed: int = 0,
) -> list[Slice]:
    """The leading scores of each of the commonest categories, and of bands of each number field.

    Arguments as of score_split. A band's ends are the quarters of the training rows, or where there are none of the
    truths.
    """
    slices = []
    for field, kind in fields.items():
        groups: dict[str, list[int]] = {}
        if kind == "category":
            values = [truth.values[field] for truth in truths]
            counts = Counter(str(value) for value in values if value is not None)
            for name, _ in sorted(counts.items(), key=lambda one: (-one[1], one[0]))[:MOST_CATEGORIES]:
                groups[name] = [row for row, value in enumerate(values) if value is not None and str(value) == name]
        elif kind == "number":
            groups = _bands(field, truths, training)
        for name, rows in groups.items():
            if rows:
                slices.append(
                    _slice(fields, field, name, [truths[row] for row in rows], [answers[row] for row in rows], seed)
                )
    return slices


def _bands(field: str, truths: Sequence[Truth], training: Sequence[Answers]) -> dict[str, list[int]]:
    known = [value for row in training if isinstance(value := row.get(field), float)]
    known = known or [value for truth in truths if isinstance(value := truth.values[field], float)]
    if not known:
        return {}
    ends = sorted(set(np.quantile(known, np.arange(1, BANDS) / BANDS, method="nearest").tolist()))
    words = [shown(end, "plain") for end in ends]
    names = [
        f"below {words[0]}",
        *(f"{low} to {high}" for low, high in pairwise(words)),
        f"from {words[-1]}",
    ]
    groups: dict[str, list[int]] = {name: [] for name in names}
    for row, truth in enumerate(truths):
        value = truth.values[field]
        if isinstance(value, float):
            groups[names[int(np.searchsorted(ends, value, side="right"))]].append(row)
    return groups


def _slice(
    fields: Mapping[str, str], by: str, value: str, truths: Sequence[Truth], answers: Sequence[Answers], seed: int
) -> Slice:
    scores, units = {}, {}
    for field, kind in fields.items():
        for metric in LEADING[kind]:
            rows = rows_of(metric, field, kind, truths, seed)
            if rows is not None:
                label = f"{field}: {metric.label}"
                scores[label] = rows.estimate(rows.measure([answers[row].get(field) for row in rows.chosen]))
                units[label] = metric.unit
    return Slice(by=by, value=value, n=len(truths), scores=scores, units=units)
