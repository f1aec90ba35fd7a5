"""Scores equal a plain loop and scikit-learn; verdicts need an interval that excludes zero."""

import math
import random

import numpy as np
import pytest

from train.score.fields import FieldError, FieldValue
from train.score.metrics import WITHIN, is_right, percentage_error, row_values
from train.score.scores import Score, Truth, percent, score_split

FIELDS = {"title": "text", "category": "category", "price": "number"}
Values = dict[str, FieldValue | None]


def values(generator: random.Random) -> Values:
    category = generator.choice(["coat", "coat", "scarf", "hat"])
    price = {"coat": 900.0, "scarf": 200.0, "hat": 90.0}[category] * math.exp(generator.gauss(0, 0.3))
    return {"title": f"{category} {generator.randrange(6)}", "category": category, "price": round(price, 1)}


def make(share_right: float, count: int = 200, seed: int = 0) -> tuple[list[Truth], list[Values], list[Values]]:
    """Truths, answers of which about share_right are right, and training rows."""
    generator = random.Random(seed)
    truths = [Truth(key=f"k{row}", group=f"g{row // 2}", values=values(generator)) for row in range(count)]
    answers = [
        dict(truth.values) if generator.random() < share_right else {**values(generator), "price": None}
        for truth in truths
    ]
    return truths, answers, [values(generator) for _ in range(500)]


def by_metric(scores: list[Score]) -> dict[str, Score]:
    return {score.metric: score for score in scores}


def test_scores_equal_scikit_learn_on_the_same_answers() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    truths, answers, training = make(0.7)
    generator = random.Random(3)
    for truth, answer in zip(truths, answers, strict=True):
        answer["price"] = float(truth.values["price"] or 0) * math.exp(generator.gauss(0, 0.15))
    scores = by_metric(score_split(FIELDS, truths, answers, training))
    true = {name: [truth.values[name] for truth in truths] for name in FIELDS}
    said = {name: [answer[name] for answer in answers] for name in FIELDS}
    assert scores["accuracy"].score.value == pytest.approx(metrics.accuracy_score(true["category"], said["category"]))
    assert scores["exact"].score.value == pytest.approx(metrics.accuracy_score(true["title"], said["title"]))
    errors = [abs(a - t) / t for a, t in zip(said["price"], true["price"], strict=True)]  # type: ignore[operator]
    assert scores["median_percentage_error"].score.value == pytest.approx(np.median(errors))
    assert scores["within_10_percent"].score.value == pytest.approx(np.mean([error <= 0.1 for error in errors]))


def test_ten_per_cent_includes_its_ends() -> None:
    assert is_right("number", 100.0, 110.0)
    assert is_right("number", 100.0, 90.0)
    assert is_right("number", 0.3, 0.33)
    assert not is_right("number", 100.0, 110.1)
    assert not is_right("number", 100.0, None)


def test_what_cannot_be_read_counts_as_wrong_and_is_counted() -> None:
    truths, answers, training = make(0.6)
    for score in score_split(FIELDS, truths, answers, training):
        if score.kind == "number":
            assert score.unreadable == sum(answer["price"] is None for answer in answers) > 0
    assert percentage_error(5.0, None) == math.inf
    assert row_values(WITHIN, "number", [5.0, 5.0], [None, 5.0]).tolist() == [0.0, 1.0]


def test_a_good_model_beats_its_baselines_and_one_that_says_the_majority_does_not() -> None:
    truths, answers, training = make(0.9)
    assert all(score.beats_baseline for score in score_split(FIELDS, truths, answers, training))
    constant = [{"title": "coat 1", "category": "coat", "price": 200.0} for _ in truths]
    assert not any(score.beats_baseline for score in score_split(FIELDS, truths, constant, training))


def test_the_majority_answer_gains_exactly_nothing() -> None:
    truths, _, training = make(0.9)
    answers = [{"title": None, "category": "coat", "price": None} for _ in truths]
    score = by_metric(score_split(FIELDS, truths, answers, training))["accuracy"]
    gain = score.baselines[0].gain
    assert (gain.value, gain.low, gain.high) == (0.0, 0.0, 0.0)
    assert not score.beats_baseline


def test_a_control_that_still_beats_its_baseline_is_reported() -> None:
    truths, answers, training = make(0.95)
    noise = make(0.0, seed=9)[1]
    scores = score_split(FIELDS, truths, answers, training, {"shuffled": noise, "leaking": answers})
    for score in scores:
        shuffled, leaking = score.controls
        assert not shuffled.better, score.label
        assert leaking.better, score.label


def test_for_errors_less_is_better() -> None:
    truths, answers, training = make(0.9)
    score = by_metric(score_split(FIELDS, truths, answers, training))["median_percentage_error"]
    assert not score.higher_is_better
    assert score.score.value < score.baselines[0].score.value
    assert score.baselines[0].gain.low > 0


def test_all_right_is_not_certain() -> None:
    truths, _, training = make(0.9)
    score = by_metric(score_split(FIELDS, truths, [truth.values for truth in truths], training))["accuracy"]
    assert score.score.value == score.score.high == 1.0
    assert 0.95 < score.score.low < 1.0


def test_mostly_unreadable_prices_have_an_infinite_error_and_valid_json() -> None:
    truths, _, training = make(0.9)
    answers: list[Values] = [{"title": None, "category": None, "price": None} for _ in truths]
    score = by_metric(score_split(FIELDS, truths, answers, training))["median_percentage_error"]
    assert score.score.value == math.inf
    assert percent(score.score.value) == "∞"
    assert score.to_json()["score"] == {"value": None, "low": None, "high": None}
    assert not score.beats_baseline


def test_rows_without_a_truth_are_left_out_of_that_score() -> None:
    truths, answers, training = make(0.9)
    truths[0].values["price"] = None
    truths[1].values["price"] = 0.0
    scores = by_metric(score_split(FIELDS, truths, answers, training))
    assert scores["accuracy"].n == len(truths)
    assert scores["within_10_percent"].n == len(truths) - 1
    assert scores["median_percentage_error"].n == len(truths) - 2


def test_nothing_to_score_is_said() -> None:
    with pytest.raises(FieldError, match="nothing to score"):
        score_split(FIELDS, [Truth(key="a", group="a", values=dict.fromkeys(FIELDS))], [{}], [])


def test_the_same_seed_gives_the_same_scores() -> None:
    truths, answers, training = make(0.8)
    assert score_split(FIELDS, truths, answers, training) == score_split(FIELDS, truths, answers, training)
