"""Answers are read by the manifest's template; what cannot be read is None and never an exception."""

from pathlib import Path

import pytest

from train.score.fields import (
    WHOLE_ANSWER,
    AnswerParser,
    FieldError,
    Prediction,
    PredictionError,
    read_number,
    read_predictions,
    typed,
    write_predictions,
)

TEMPLATE = "Product: {title}, Category: {category}, Full Price: {price}"
FIELDS = {"title": "text", "category": "category", "price": "number"}


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1950.0", 1950.0),
        ("1,950.00", 1950.0),
        (" 12 ", 12.0),
        ("-3.5", -3.5),
        ("1e+16", 1e16),
        ("1,95", None),
        ("19,500,0", None),
        ("EUR 20", None),
        ("nan", None),
        ("inf", None),
        ("1e999", None),
        ("", None),
        ("12 34", None),
    ],
)
def test_a_number_is_read_only_where_it_is_plainly_one(text: str, number: float | None) -> None:
    assert read_number(text) == number


def test_an_answer_by_the_template_gives_typed_fields() -> None:
    answer = "Product: Écharpe 羊毛, Category: scarves, Full Price: 1,950.00"
    assert AnswerParser(TEMPLATE, FIELDS).parse(answer) == {
        "title": "Écharpe 羊毛",
        "category": "scarves",
        "price": 1950.0,
    }


def test_a_title_may_contain_the_template_s_own_words() -> None:
    parsed = AnswerParser(TEMPLATE, FIELDS).parse("Product: a, Category: b, Category: c, Full Price: 1.0")
    assert parsed == {"title": "a, Category: b", "category": "c", "price": 1.0}


def test_a_price_that_is_none_leaves_the_other_fields() -> None:
    parsed = AnswerParser(TEMPLATE, FIELDS).parse("Product: a, Category: b, Full Price: cheap")
    assert parsed == {"title": "a", "category": "b", "price": None}


def test_an_answer_that_ends_early_is_read_as_far_as_it_goes() -> None:
    assert AnswerParser(TEMPLATE, FIELDS).parse("Product: a, Category: b") == {
        "title": "a",
        "category": "b",
        "price": None,
    }


@pytest.mark.parametrize("answer", ["", "I see a coat.", "Category: b, Full Price: 2", "\x00\ufffd"])
def test_an_answer_of_another_form_has_no_fields(answer: str) -> None:
    assert AnswerParser(TEMPLATE, FIELDS).parse(answer) == {"title": None, "category": None, "price": None}


def test_without_template_the_answer_is_the_one_field() -> None:
    assert AnswerParser(None, {"category": "category"}).parse(" dress ") == {"category": "dress"}
    parser = AnswerParser(None, {})
    assert parser.parse("A red coat.") == {WHOLE_ANSWER: "A red coat."}
    assert parser.truth({}, "A red coat.") == {WHOLE_ANSWER: "A red coat."}


@pytest.mark.parametrize(
    ("template", "fields", "named"),
    [
        ("{a}{b}", {"a": "text", "b": "text"}, "between two fields"),
        ("{a}", {"a": "text", "b": "text"}, "does not show"),
        (None, {"a": "text", "b": "text"}, "no answer_template"),
        ("{a}", {"a": "colour"}, "colour"),
        ("plain", {"a": "text"}, "shows no field"),
    ],
)
def test_fields_that_cannot_be_scored_are_named(template: str | None, fields: dict[str, str], named: str) -> None:
    with pytest.raises(FieldError, match=named):
        AnswerParser(template, fields)


def test_braces_in_a_template_are_text() -> None:
    assert AnswerParser('{{"price": {price}}}', {"price": "number"}).parse('{"price": 3.0}') == {"price": 3.0}


def test_truths_are_typed_like_answers() -> None:
    assert typed(1950, "number") == 1950.0
    assert typed("1,950.00", "number") == 1950.0
    assert typed(float("nan"), "number") is None
    assert typed(" Coats ", "category") == "Coats"
    assert typed("  ", "text") is None
    assert typed(None, "text") is None


def test_predictions_are_read_back_as_written(tmp_path: Path) -> None:
    predictions = [
        Prediction(key="a", answer="Žluťoučký\n<b>", fields={"price": None, "title": "x"}, logprob=-1.25),
        Prediction(key="b", answer="", fields={"price": 2.5, "title": None}, logprob=-0.5),
    ]
    write_predictions(tmp_path / "predictions.jsonl", predictions)
    assert read_predictions(tmp_path / "predictions.jsonl") == predictions
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.jsonl"]


def test_a_line_that_is_no_prediction_is_named(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"key": "a", "answer": "", "fields": {}, "logprob": 0}\n{"key": "b"}\n')
    with pytest.raises(PredictionError, match="line 2"):
        read_predictions(tmp_path / "p.jsonl")
