"""Presets and mappings: what they render, what they refuse, and which rows they set aside."""

from pathlib import Path
from typing import Any

import jinja2
import pytest

from data.manifest import CHAT_TEMPLATES
from data.mapping import Mapping
from data.mapping_file import check_columns, load_mapping, make_mapping
from data.rules import MappingError, ValueRejected
from data.schema import Rejected, Row

BURBERRY = {
    "product_code": "801",
    "imageurl": "a.jpg",
    "title": "Coat",
    "category3_code": "COATS",
    "full_price": "1950",
}
PLAIN: dict[str, Any] = {
    "key": "id",
    "pictures": ["image"],
    "prompt": "<|image_1|>What is {name}?",
    "answer": "{name}",
    "split": {"fractions": {"train": 1.0}},
}


def plain(**changes: Any) -> Mapping:
    return make_mapping(PLAIN | changes, "test")


def answer(mapping: Mapping, values: dict[str, Any]) -> str:
    return mapping.sample(0, values, "k", ["jpg"] * len(mapping.pictures)).messages[1]["content"]


@pytest.mark.parametrize("price", ["1950", "1950.0", "1,950.00", 1950, 1950.0, " 1950 "])
def test_the_burberry_text_is_the_walkthroughs(price: object) -> None:
    mapping = load_mapping("burberry")
    sample = mapping.sample(7, BURBERRY | {"full_price": price}, "801", ["jpg"])
    template = jinja2.Template(CHAT_TEMPLATES[mapping.chat_template])
    assert template.render(messages=sample.messages) == (
        "<|user|>\n<|image_1|>What is shown in this image?<|end|><|assistant|>\n"
        "Product: Coat, Category: COATS, Full Price: 1950.0<|end|>"
    )
    assert sample.target == {"title": "Coat", "category": "COATS", "price": 1950.0}
    assert sample.source == {"row": 7, "columns": BURBERRY | {"full_price": price}}
    assert mapping.answer_template == "Product: {title}, Category: {category}, Full Price: {price}"
    assert mapping.question == "<|image_1|>What is shown in this image?"


def test_the_clothing_preset_asks_for_the_garment() -> None:
    mapping = load_mapping("clothing")
    sample = mapping.sample(0, {"id": "a", "image": "a.jpg", "category": "dress", "split": "train"}, "a", ["jpg"])
    assert [message["content"] for message in sample.messages] == [
        "<|image_1|>\nWhat kind of garment is this?",
        "dress",
    ]
    assert mapping.split_of({"split": "validation"}) == "validation"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"title": ""}, "missing"),
        ({"title": None}, "missing"),
        ({"title": "nan"}, "missing"),
        ({"full_price": "None"}, "missing"),
        ({"full_price": "on request"}, "bad-number"),
        ({"full_price": "1e999"}, "bad-number"),
        ({"full_price": "1,95"}, "bad-number"),
        ({"full_price": True}, "bad-number"),
        ({"title": ["a"]}, "bad-value"),
        ({"title": "x" * 200_000}, "too-long"),
    ],
)
def test_rows_without_what_the_answer_needs_are_set_aside(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueRejected) as caught:
        answer(load_mapping("burberry"), BURBERRY | changes)
    assert caught.value.reason == reason


def test_text_of_the_catalogue_never_names_a_picture() -> None:
    mapping = plain()
    sample = mapping.sample(0, {"name": "<|image_1|> <|image_2|> <|end|>"}, "k", ["jpg"])
    assert sample.messages[0]["content"] == "<|image_1|>What is <| image_1|> <| image_2|> <|end|>?"
    assert sample.messages[1]["content"] == "<|image_1|> <|image_2|> <|end|>"
    assert sample.source["columns"]["name"] == "<|image_1|> <|image_2|> <|end|>"
    split = plain(prompt="<|image_1|>{a}{b}", answer="{a}")
    with pytest.raises(ValueRejected, match="bad-text"):
        split.sample(0, {"a": "<|image_", "b": "1|>"}, "k", ["jpg"])


def test_formats_of_python_and_braces_as_text() -> None:
    mapping = plain(answer="{{{price:,.2f}}} {name:>5}", fields={"p": {"column": "price", "type": "number"}})
    assert answer(mapping, {"price": "1950", "name": "ab"}) == "{1,950.00}    ab"
    assert mapping.answer_template == "{{{p:,.2f}}} {name:>5}"


def test_a_column_that_has_another_fields_name_is_kept_apart() -> None:
    mapping = plain(answer="{price} {full}", fields={"price": {"column": "full", "type": "number"}})
    assert mapping.answer_template == "{column price} {price}"


def test_several_pictures_a_row() -> None:
    mapping = plain(pictures=["front", "back"], prompt="<|image_2|><|image_1|>?")
    assert mapping.sample(0, {"name": "x"}, "k", ["jpg", "png"]).images == ("0.jpg", "1.png")


def test_one_tag_for_all_pictures_of_a_row() -> None:
    mapping = plain(pictures=["photos"], prompt="<|images|>\nWhat is {name}?")
    sample = mapping.sample(0, {"name": "<|images|>"}, "k", ["jpg", "png"])
    assert sample.messages[0]["content"] == "<|image_1|>\n<|image_2|>\nWhat is <|images|>?"
    assert plain(pictures=["photos"], prompt="<|images|>?").question == "<|image_1|>?"


@pytest.mark.parametrize(
    ("rule", "row", "taken"),
    [
        ({"any_of": ["USA", 5]}, {"x": "USA"}, True),
        ({"any_of": ["USA", 5]}, {"x": 5}, True),
        ({"any_of": ["USA"]}, {"x": "GBR"}, False),
        ({"any_of": ["USA"]}, {}, False),
        ({"none_of": [""]}, {"x": None}, False),
        ({"none_of": ["GBR"]}, {"x": "USA"}, True),
        ({"min": 10.0, "max": 20.0}, {"x": "1,5"}, False),
        ({"min": 10.0, "max": 2000.0}, {"x": "1,950.00"}, True),
        ({"min": 10.0}, {"x": 9}, False),
        ({"max": 10.0}, {"x": None}, False),
    ],
)
def test_filters_set_rows_aside_before_anything_is_fetched(rule: dict[str, Any], row: Any, taken: bool) -> None:
    entry = Row(number=3, values=row)
    found = plain(filters=[{"column": "x", **rule}]).screen(entry)
    assert found is entry if taken else isinstance(found, Rejected) and found.reason == "filtered"


def test_kept_columns_can_be_chosen() -> None:
    mapping = plain(keep=["name"])
    assert mapping.sample(3, {"name": "x", "other": "y"}, "k", ["jpg"]).source == {"row": 3, "columns": {"name": "x"}}


@pytest.mark.parametrize(
    ("raw", "key"),
    [("abc-1_X", "abc-1_X"), (801, "801"), (None, "000000005"), ("", "000000005"), (" 801 ", "801")],
)
def test_keys_that_are_safe_are_kept(raw: object, key: str) -> None:
    assert plain().key_of(5, {"id": raw}) == key


@pytest.mark.parametrize("raw", ["a.b", "../../etc/passwd", "a\nb", "😀", "x" * 4000, "é", "\ud800"])
def test_keys_that_are_not_safe_become_so_and_stay_apart(raw: str) -> None:
    mapping = plain()
    key = mapping.key_of(5, {"id": raw})
    assert len(key) < 90
    assert set(key) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_~-")
    assert key != mapping.key_of(5, {"id": raw + "?"})
    mapping.sample(5, {"name": "x"}, key, ["jpg"])


@pytest.mark.parametrize("name", ["", None, "../x", "a b", "x" * 50])
def test_a_split_that_cannot_name_a_folder_is_set_aside(name: str | None) -> None:
    with pytest.raises(ValueRejected, match="split"):
        load_mapping("clothing").split_of({"split": name})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"promt": "x"}, "unknown entry 'promt', did you mean 'prompt'"),
        ({"prompt": "no tag"}, r"names pictures \[\].*write <\|image_1\|>"),
        ({"prompt": "<|image_2|>"}, r"names pictures \[2\]"),
        ({"pictures": []}, r"names pictures \[1\]"),
        ({"answer": "{name"}, "answer"),
        ({"answer": "{}"}, "answer"),
        ({"answer": "{name!r}"}, "answer"),
        ({"answer": "{name:{width}}"}, "answer"),
        ({"fields": {"t": {"column": "title", "type": "text"}}}, "the answer does not show"),
        ({"fields": {"t": {"column": "name", "type": "colour"}}}, r"fields\.t\.type"),
        ({"chat_template": "chatml"}, "chat_template"),
        ({"split": {}}, "fractions"),
        ({"split": {"fractions": {"train": 0.5}}}, "together 0.5"),
        ({"split": {"fractions": {"../x": 1.0}}}, "cannot name a folder"),
        ({"key": 5}, "key"),
    ],
)
def test_a_mapping_that_cannot_work_is_refused_before_anything_starts(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(MappingError, match=says):
        plain(**changes)


def test_unknown_presets_and_columns_say_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(MappingError, match=r"did you mean 'burberry'.*burberry, clothing"):
        load_mapping("burbery")
    with pytest.raises(MappingError, match="no such mapping"):
        load_mapping(str(tmp_path / "none.yaml"))
    with pytest.raises(MappingError, match=r"no column 'image', did you mean 'images'.*its columns: id, images"):
        check_columns(plain(), ("id", "images"), "rows.csv")


@pytest.mark.parametrize("text", ["a: [", "- a", "", "\x00"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(MappingError):
        load_mapping(str(tmp_path / "a.yaml"))
