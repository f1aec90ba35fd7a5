"""Bootstrap intervals: the same for a seed, by group, equal to a plain loop, and covering what they claim."""

import numpy as np
import pytest

from train.score.intervals import RESAMPLES, interval, one_sided_bound, resample


def plain_loop(values: np.ndarray, groups: np.ndarray, median: bool, resamples: int, seed: int) -> np.ndarray:
    """The same draws, one at a time, with the rows really repeated."""
    generator = np.random.default_rng(seed)
    count = groups.max() + 1
    drawn = generator.integers(0, count, size=(resamples, count))
    statistic = np.median if median else np.mean
    return np.array([statistic(np.concatenate([values[groups == group] for group in draw])) for draw in drawn])


@pytest.mark.parametrize("statistic", ["mean", "median"])
def test_resampling_equals_a_plain_loop_over_repeated_rows(statistic: str) -> None:
    generator = np.random.default_rng(1)
    values = generator.normal(size=60)
    groups = np.unique(generator.integers(0, 25, size=60), return_inverse=True)[1].astype(np.int64)
    ours = resample(values, groups, statistic, resamples=50, seed=3)  # type: ignore[arg-type]
    assert np.allclose(ours, plain_loop(values, groups, statistic == "median", 50, 3), rtol=0, atol=1e-12)


def test_resampling_in_parts_gives_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    values, groups = np.arange(40.0), np.arange(40)
    whole = resample(values, groups, "mean", resamples=64, seed=5)
    monkeypatch.setattr("train.score.intervals._CELLS_AT_ONCE", 400)
    assert np.array_equal(resample(values, groups, "mean", resamples=64, seed=5), whole)


def test_rows_of_one_product_widen_the_interval() -> None:
    values = np.repeat(np.random.default_rng(0).integers(0, 2, size=40), 10).astype(np.float64)
    alone = interval(resample(values, np.arange(400), "mean"))
    together = interval(resample(values, np.repeat(np.arange(40), 10), "mean"))
    assert together[1] - together[0] > 2 * (alone[1] - alone[0])


def test_infinite_errors_give_an_infinite_end_and_no_nan() -> None:
    values = np.array([0.1] * 55 + [np.inf] * 45)
    low, high = interval(resample(values, np.arange(100), "median"))
    assert low == pytest.approx(0.1)
    assert high == np.inf


def test_the_bound_of_rows_that_all_agree_is_exact() -> None:
    assert (1 - one_sided_bound(300)) ** 300 == pytest.approx(0.025)


# 3 standard errors of 300 repetitions are 3.8 per cent, of 2,000 1.5.
@pytest.mark.parametrize(
    ("share", "repeats", "resamples", "least", "most"),
    [
        (0.9, 300, 400, 0.91, 0.985),
        *(
            pytest.param(share, 2000, RESAMPLES, 0.93, 0.97, marks=pytest.mark.soak)
            for share in (0.2, 0.35, 0.5, 0.7, 0.9)
        ),
    ],
)
def test_intervals_cover_the_truth_about_95_times_in_100(
    share: float, repeats: int, resamples: int, least: float, most: float
) -> None:
    generator = np.random.default_rng(7)
    covered = 0
    groups = np.arange(300)
    for seed in range(repeats):
        values = (generator.random(300) < share).astype(np.float64)
        low, high = interval(resample(values, groups, "mean", resamples=resamples, seed=seed))
        covered += low <= share <= high
    print(f"share {share}: {100 * covered / repeats:.1f} % of {repeats} intervals hold it")
    assert least <= covered / repeats <= most
