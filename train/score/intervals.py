"""95 % bootstrap intervals of means, medians and macro-F1, resampled by group, the same for the same seed."""

from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Statistic = Literal["mean", "median", "macro_f1"]
CONFIDENCE = 0.95
RESAMPLES = 2000
FEWEST_GROUPS = 6
"""Of fewer groups no 95 % interval can be told: five that all agree do so by chance in 1 of 16 cases (sign test)."""

_CELLS_AT_ONCE = 8_000_000  # resamples x rows held in memory together


def statistic_of(values: NDArray[np.float64], statistic: Statistic) -> float:
    """The statistic of values [n], for macro-F1 [n, 2]; a median may be infinite where answers could not be read."""
    if statistic == "macro_f1":
        counts = _class_counts(values, np.zeros(len(values), np.int64))
        return float(_macro_f1(*(one.astype(np.float64) for one in counts))[0])
    return float(np.mean(values) if statistic == "mean" else np.median(values))


def resample(
    values: NDArray[np.float64],
    groups: NDArray[np.int64],
    statistic: Statistic,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> NDArray[np.float64]:
    """The statistic of each of `resamples` draws of as many groups as there are, with replacement.

    Groups, not rows, are drawn, because rows of one product resemble each other. The draws depend on the groups and the
    seed alone: two calls with other values of the same rows are paired, and their difference is the paired bootstrap's.

    Args:
        values: [n] one number a row; for macro-F1 [n, 2], see metrics.row_values.
        groups: [n] whole numbers 0 … G−1, the group of each row.
        statistic: "mean", "median" or "macro_f1".

    Returns:
        [resamples] float64.
    """
    count = int(groups.max()) + 1
    if statistic == "macro_f1":
        counts = [one.astype(np.float64) for one in _class_counts(values, groups)]
        drawn = (one.astype(np.float64) for one in _draws(count, resamples, seed, rows=len(values)))
        return np.concatenate([_macro_f1(*(some @ one for one in counts)) for some in drawn])
    order = np.argsort(values, kind="stable")
    ordered, ordered_groups = values[order], groups[order]
    sums, sizes = np.bincount(groups, values, count), np.bincount(groups, minlength=count).astype(np.float64)
    parts = []
    for draws in _draws(count, resamples, seed, rows=len(values)):
        if statistic == "mean":
            parts.append(draws @ sums / (draws @ sizes))
            continue
        below = np.cumsum(draws[:, ordered_groups], axis=1)  # [r, n] drawn rows up to and with each
        total = below[:, -1:]
        low = (below > (total - 1) // 2).argmax(axis=1)
        high = (below > total // 2).argmax(axis=1)
        parts.append((ordered[low] + ordered[high]) / 2)
    return np.concatenate(parts)


def _class_counts(values: NDArray[np.float64], groups: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
    """Of each group and true class: rows of it, rows said to be of it, rows of which both hold; each [G, classes]."""
    true, said = values[:, 0].astype(np.int64), values[:, 1].astype(np.int64)
    shape = (int(groups.max()) + 1, int(true.max()) + 1)
    tables = []
    for codes, chosen in ((true, true >= 0), (said, said >= 0), (true, true == said)):
        table = np.zeros(shape, np.int64)
        np.add.at(table, (groups[chosen], codes[chosen]), 1)
        tables.append(table)
    return tuple(tables)


def _macro_f1(true: NDArray[np.float64], said: NDArray[np.float64], both: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of 2·both / (true + said) over the classes of which a draw has rows: [r, classes] each to [r]."""
    there = true > 0
    scores = np.where(there, 2 * both / np.maximum(true + said, 1), 0.0)
    result: NDArray[np.float64] = scores.sum(axis=1) / np.maximum(there.sum(axis=1), 1)
    return result


def _draws(count: int, resamples: int, seed: int, rows: int) -> Iterator[NDArray[np.int64]]:
    """How often each of `count` groups is drawn: [r, count] at a time, `resamples` in all."""
    generator = np.random.default_rng(seed)
    at_once = max(1, min(resamples, _CELLS_AT_ONCE // max(rows, count)))
    for start in range(0, resamples, at_once):
        size = min(at_once, resamples - start)
        drawn = generator.integers(0, count, size=(size, count)) + count * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)


def interval(replicates: NDArray[np.float64]) -> tuple[float, float]:
    """The percentile interval of resampled statistics [r]; its ends are members of it, so they may be infinite."""
    tail = (1 - CONFIDENCE) / 2
    low = np.quantile(replicates, tail, method="lower")
    high = np.quantile(replicates, 1 - tail, method="higher")
    return float(low), float(high)


def one_sided_bound(groups: int) -> float:
    """How far from 0 or 1 a share may lie of which `groups` independent groups all say 0 or all say 1.

    A bootstrap of rows that all agree has width 0 and says nothing; this is the exact (Clopper-Pearson) bound instead.
    """
    return float(1 - ((1 - CONFIDENCE) / 2) ** (1 / groups))
