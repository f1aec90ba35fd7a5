"""Scores equal a plain loop and scikit-learn; verdicts need an interval that excludes zero."""

import math
import random

import numpy as np
import pytest

from train.score.comparing import differences
from train.score.fields import FieldError, FieldValue
from train.score.intervals import resample
from train.score.metrics import (
    MACRO_F1,
    NORMALISED,
    WITHIN,
    distance,
    is_right,
    likeness,
    normalised,
    percentage_error,
    row_values,
)
from train.score.report import verdicts
from train.score.scores import Score, Truth, percent, points, score_split
from train.score.slices import slice_scores

FIELDS = {"title": "text", "category": "category", "price": "number"}
Values = dict[str, FieldValue | None]


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.score.scores.RESAMPLES", 400)


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
    f1 = metrics.f1_score(true["category"], said["category"], average="macro", labels=sorted(set(true["category"])))
    assert scores["macro_f1"].score.value == pytest.approx(f1)
    prices = np.array(true["price"]), np.array(said["price"])
    assert scores["median_absolute_error"].score.value == pytest.approx(metrics.median_absolute_error(*prices))
    logs = metrics.median_absolute_error(np.log(prices[0]), np.log(prices[1]))
    assert scores["median_log_error"].score.value == pytest.approx(logs)
    errors = [abs(a - t) / t for a, t in zip(said["price"], true["price"], strict=True)]  # type: ignore[operator]
    assert scores["median_percentage_error"].score.value == pytest.approx(np.median(errors))
    for per_cent in (5, 10, 25):
        share = np.mean([100 * error <= per_cent for error in errors])
        assert scores[f"within_{per_cent}_percent"].score.value == pytest.approx(share)


def plain_distance(one: str, other: str) -> int:
    """Levenshtein's distance by its definition."""
    row = list(range(len(other) + 1))
    for letter in one:
        above, row = row, [row[0] + 1]
        for place, another in enumerate(other):
            row.append(min(row[-1] + 1, above[place + 1] + 1, above[place] + (letter != another)))
    return row[-1]


def test_distances_equal_a_plain_loop() -> None:
    generator = random.Random(5)
    for _ in range(500):
        one, other = ("".join(generator.choices("abé羊", k=generator.randrange(90))) for _ in range(2))
        assert distance(one, other) == plain_distance(one, other)


def test_likeness_is_that_of_anls() -> None:
    assert likeness("Red coat", "red coat") == 1.0
    assert likeness("Red coat", "Red boat") == pytest.approx(1 - 1 / 8)
    assert likeness("Red coat", "Hat") == 0.0
    assert likeness("Red coat", None) == 0.0


def test_normalised_match_forgives_case_signs_and_spaces() -> None:
    assert normalised("  Élan—Coat,  (red) ") == normalised("élan coat red")
    assert normalised("coat") != normalised("coats")
    assert row_values(NORMALISED, "text", ["Red Coat.", "Hat", "Hat"], ["red coat", None, "cap"]).tolist() == [1, 0, 0]


def test_macro_f1_of_resamples_equals_scikit_learn_on_the_repeated_rows() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(0)
    truths, said = (generator.choice(["a", "b", "c"], size=60, p=[0.6, 0.3, 0.1]).tolist() for _ in range(2))
    said[3] = None
    groups = np.arange(60) // 2
    found = resample(row_values(MACRO_F1, "category", truths, said), groups, "macro_f1", resamples=40, seed=2)
    drawn = np.random.default_rng(2).integers(0, 30, size=(40, 30))
    for draw, value in zip(drawn, found, strict=True):
        rows = [row for group in draw for row in (2 * group, 2 * group + 1)]
        true, answers = [truths[row] for row in rows], [str(said[row]) for row in rows]
        wanted = metrics.f1_score(true, answers, average="macro", labels=sorted(set(true)), zero_division=0)
        assert value == pytest.approx(wanted)


def test_guesses_by_share_are_the_macro_f1_to_beat() -> None:
    truths, _, training = make(0.9, count=900)
    guesses = make(0.0, count=900, seed=4)[1]
    score = by_metric(score_split(FIELDS, truths, guesses, training))["macro_f1"]
    guessed, majority = score.baselines
    assert guessed.score.value == pytest.approx(1 / 3, abs=0.05)
    assert majority.score.value < 0.25
    assert not score.beats_baseline


def test_guesses_of_few_rows_are_the_mean_of_several_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    truths, answers, training = make(0.9, count=18)

    def spread() -> float:
        scores = [by_metric(score_split(FIELDS, truths, answers, training, seed=100 * one)) for one in range(8)]
        return float(np.std([score["macro_f1"].baselines[0].score.value for score in scores]))

    several = spread()
    monkeypatch.setattr("train.score.scores.MOST_DRAWS", 1)
    assert 0 < several < 0.5 * spread()


def test_the_gain_over_another_model_is_paired_and_told() -> None:
    truths, answers, training = make(0.9)
    before = make(0.0, seed=9)[1]
    scores = score_split(FIELDS, truths, answers, training, models={"base model": before})
    assert all(one.better for score in scores for one in score.models)
    gain = by_metric(scores)["accuracy"].models[0]
    assert gain.gain.value == pytest.approx(by_metric(scores)["accuracy"].score.value - gain.score.value)
    assert verdicts(scores)[-1] == (True, "Better than the base model: 11 of 11 scores.")
    same = score_split(FIELDS, truths, answers, training, models={"base model": answers})
    assert verdicts(same)[-1] == (False, "Better than the base model: 0 of 11 scores.")


def test_scores_by_category_and_band_are_those_of_their_rows() -> None:
    truths, answers, training = make(0.7)
    slices = slice_scores(FIELDS, truths, answers, training)
    assert sum(one.n for one in slices if one.by == "category") == len(truths)
    bands = [one for one in slices if one.by == "price"]
    assert len(bands) == 4
    assert sum(one.n for one in bands) == len(truths)
    for one in slices:
        if one.by == "category":
            rows = [row for row, truth in enumerate(truths) if truth.values["category"] == one.value]
            right = np.mean([answers[row]["title"] == truths[row].values["title"] for row in rows])
            assert one.scores["title: exact match"].value == pytest.approx(right)


def test_two_models_are_compared_in_pairs() -> None:
    truths, good, _ = make(0.8)
    bad = [answer if row % 2 else dict.fromkeys(FIELDS) for row, answer in enumerate(good)]
    found = {one.label: one for one in differences(FIELDS, truths, bad, good)}
    accuracy = found["category: accuracy"]
    assert accuracy.gain.value == pytest.approx(accuracy.second.value - accuracy.first.value)
    assert accuracy.verdict == "better"
    back = {one.label: one for one in differences(FIELDS, truths, good, bad)}
    assert back["category: accuracy"].verdict == "worse"
    assert {one.verdict for one in differences(FIELDS, truths, good, good)} == {"no difference shown"}


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


def one_group_each(count: int) -> tuple[list[Truth], list[Values], list[Values]]:
    """Truths of so many products, all answered rightly, and training rows of other kinds."""
    known: Values = {"title": "coat 1", "category": "coat", "price": 100.0}
    truths = [Truth(key=f"k{row}", group=f"g{row}", values=known) for row in range(count)]
    other: Values = {"title": "hat 1", "category": "hat", "price": 900.0}
    return truths, [known] * count, [other] * 10


@pytest.mark.parametrize("count", [1, 5])
def test_a_handful_of_products_shows_nothing(count: int) -> None:
    truths, answers, training = one_group_each(count)
    nothing: list[Values] = [dict.fromkeys(FIELDS) for _ in truths]
    scores = score_split(FIELDS, truths, answers, training, {"shuffled": nothing}, {"other": nothing})
    assert verdicts(scores) == [(False, "Nothing can be shown of fewer than 6 products: evaluate more of them.")]
    for score in scores:
        assert not score.beats_baseline, score.label
        assert not score.models[0].better, score.label
        assert score.score.low < score.score.high, score.label
    assert all(one.verdict == "no difference shown" for one in differences(FIELDS, truths, nothing, answers))


def test_six_products_that_agree_are_the_fewest_that_show_a_gain_and_it_is_not_certain() -> None:
    truths, answers, training = one_group_each(6)
    gain = by_metric(score_split(FIELDS, truths, answers, training))["accuracy"].baselines[0].gain
    # The exact bound: what none of six showed may be true of 45.9 %.
    assert (gain.value, gain.high) == (1.0, 1.0)
    assert gain.low == pytest.approx(1 - 2 * (1 - 0.025 ** (1 / 6)))
    assert gain.low > 0


def test_a_difference_of_nothing_has_no_sign_but_plus() -> None:
    assert [points(value) for value in (-0.0, -0.0004, 0.0, -0.001)] == ["+0.0", "+0.0", "+0.0", "−0.1"]
    assert points(-0.0, "plain") == "+0"
    truths, answers, _ = make(0.9)
    for one in differences(FIELDS, truths, answers, answers):
        assert math.copysign(1, one.gain.value) == math.copysign(1, one.gain.low) == 1


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
