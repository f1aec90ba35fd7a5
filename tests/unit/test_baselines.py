"""The constants that never look are the best ones on the training rows."""

import numpy as np
import pytest

from train.score.baselines import baselines, best_constant, best_median_error, best_within
from train.score.metrics import (
    ABSOLUTE_ERROR,
    ACCURACY,
    ANLS,
    EXACT,
    LOG_ERROR,
    MEDIAN_ERROR,
    WITHIN,
    WITHIN_5,
    WITHIN_25,
    Metric,
    row_values,
)


def prices(seed: int, count: int) -> np.ndarray:
    return np.round(np.exp(np.random.default_rng(seed).normal(6, 0.9, size=count)), 0)


def share_within(constant: float, values: np.ndarray) -> float:
    return float(np.mean(np.abs(constant - values) <= 0.1 * values))


def median_error(constant: float, values: np.ndarray) -> float:
    return float(np.median(np.abs(constant - values) / values))


@pytest.mark.parametrize("metric", [WITHIN_5, WITHIN_25, ABSOLUTE_ERROR, LOG_ERROR])
@pytest.mark.parametrize("count", [1, 30, 401])
def test_each_price_score_has_the_best_constant_of_a_fine_grid(metric: Metric, count: int) -> None:
    values = prices(count, count)
    rows = [float(value) for value in values]

    def score(constant: float) -> float:
        found = row_values(metric, "number", rows, [constant] * len(rows))
        return float(found.mean()) if metric.statistic == "mean" else -float(np.median(found))

    best = max(score(float(constant)) for constant in np.linspace(values.min() * 0.5, values.max() * 1.2, 1500))
    assert score(best_constant(metric, values)) >= best - (0.0 if count % 2 else abs(0.02 * best))


def test_the_title_to_beat_is_the_one_most_like_all_others() -> None:
    training = ["red wool coat"] * 3 + ["hat"] * 4 + ["blue wool coat", "grey wool coat", "pink wool coat"]
    first, second = baselines(ANLS, "title", "text", training)
    assert (first.value, second.value) == ("red wool coat", "hat")


@pytest.mark.parametrize("count", [1, 30, 101, 400, 401])
def test_no_constant_of_a_fine_grid_beats_the_best_ones(count: int) -> None:
    values = prices(count, count)
    grid = np.linspace(values.min() * 0.5, values.max() * 1.2, 6000)
    assert share_within(best_within(values), values) >= max(share_within(constant, values) for constant in grid)
    best = min(median_error(constant, values) for constant in grid)
    # Of an even number of rows the median is the mean of two, and another constant may win by half their distance.
    assert median_error(best_median_error(values), values) <= best + (1e-6 if count % 2 else 0.02)


def test_one_price_is_its_own_best_constant() -> None:
    assert best_within(np.array([50.0])) == pytest.approx(50.0)
    assert best_median_error(np.array([50.0, 50.0])) == pytest.approx(50.0)


def test_the_constant_to_beat_comes_first_and_the_median_beside_it() -> None:
    training = [float(price) for price in prices(0, 99)]
    for metric in (WITHIN, MEDIAN_ERROR):
        first, second = baselines(metric, "price", "number", training)
        assert first.name == "best constant"
        assert second.name == "median price"
        assert second.value == pytest.approx(np.median(training))


def test_majority_and_commonest_are_counted_and_ties_go_by_the_alphabet() -> None:
    assert baselines(ACCURACY, "category", "category", ["b", "a", "b"])[0].value == "b"
    assert baselines(EXACT, "title", "text", ["d", "c", "d", "c"])[0].value == "c"


def test_without_training_values_there_is_no_baseline() -> None:
    assert baselines(ACCURACY, "category", "category", []) == []
    assert baselines(WITHIN, "price", "number", [0.0]) == []
