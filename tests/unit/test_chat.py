"""Conversations in the forms people have: what they become, which pictures they name, and which are none."""

from typing import Any

import pytest

from data.chat import ChatError, inline_pictures, picture_values, read_chat
from data.mapping import Mapping
from data.mapping_file import make_mapping
from data.rules import MappingError, ValueRejected

ASKED = "<|image_1|>\nWhat is it?"
FORMS: dict[str, tuple[Any, list[Any], list[Any]]] = {
    "messages with a placeholder": (
        [{"role": "user", "content": "<image>\nWhat is it?"}, {"role": "assistant", "content": "A <image>."}],
        ["a.jpg"],
        [],
    ),
    "a list of parts": (
        [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "A <image>."}]},
        ],
        ["a.jpg"],
        [],
    ),
    "parts that name their picture, as Parquet keeps them": (
        [
            {
                "role": "user",
                "content": [
                    {"type": "image", "image": "in.jpg", "text": None},
                    {"type": "text", "image": None, "text": "What is it?"},
                ],
            },
            {"role": "assistant", "content": [{"type": "text", "image": None, "text": "A <image>."}]},
        ],
        [],
        ["in.jpg"],
    ),
    "OpenAI's image_url": (
        [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": "https://x/a.jpg"}},
                    {"type": "text", "text": "What is it?"},
                ],
            },
            {"role": "assistant", "content": "A <image>."},
        ],
        [],
        ["https://x/a.jpg"],
    ),
    "LLaVA": (
        [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A <image>."}],
        ["a.jpg"],
        [],
    ),
    "the cookbook": ([{"images": ["in.jpg"], "user": "What is it?", "assistant": "A <image>."}], [], ["in.jpg"]),
    "tags that are numbered already": (
        [{"role": "user", "content": ASKED}, {"role": "assistant", "content": "A <image>."}],
        ["a.jpg"],
        [],
    ),
    "a picture that no text names": (
        [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "A <image>."}],
        ["a.jpg"],
        [],
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_becomes_the_same_messages(form: str) -> None:
    value, listed, inside = FORMS[form]
    chat = read_chat(value, len(listed))
    assert chat.messages == [{"role": "user", "content": ASKED}, {"role": "assistant", "content": "A <image>."}]
    assert chat.inside == inside
    row = {"chat": value, "images": listed}
    assert picture_values(row, ["images"], "chat") == [*listed, *inside]


def test_several_pictures_and_turns_keep_their_numbers() -> None:
    turns = [
        {"images": ["a", "b"], "user": "Compare.", "assistant": "Same."},
        {"images": ["c"], "user": "And <image>?", "assistant": "No."},
    ]
    chat = read_chat(turns, 0)
    assert [one["content"] for one in chat.messages] == [
        "<|image_1|>\n<|image_2|>\nCompare.",
        "Same.",
        "And <|image_3|>?",
        "No.",
    ]
    assert chat.inside == ["a", "b", "c"]
    again = read_chat(inline_pictures(chat.messages, chat.inside, 0), 0)
    assert (again.messages, again.inside) == (chat.messages, chat.inside)


@pytest.mark.parametrize(
    ("value", "listed", "says"),
    [
        (None, 0, "not a list of turns"),
        ([], 0, "not a list of turns"),
        ("hello", 0, "not the JSON"),
        ([{"role": "tool", "content": "x"}], 0, "role 'tool'"),
        ([{"role": "user", "content": 5}], 0, "not text or a list"),
        ([{"role": "user", "content": [{"type": "video"}]}], 0, "part of type 'video'"),
        ([{"role": "user", "content": "<image><image>"}], 1, "names 2 pictures, the row has 1"),
        ([{"role": "user", "content": "x"}], 0, "does not end with an answer"),
        ([{"role": "assistant", "content": "x"}], 0, "nobody asks"),
        ([{"text": "x"}], 0, "needs role and content"),
    ],
)
def test_what_is_no_conversation_is_said(value: Any, listed: int, says: str) -> None:
    with pytest.raises(ChatError, match=says):
        read_chat(value, listed)


def chat_mapping(**changes: Any) -> Mapping:
    record = {"chat": "messages", "pictures": ["images"], "split": {"fractions": {"train": 1.0}}}
    return make_mapping(record | changes, "test")


def test_a_mapping_of_conversations_renders_them_and_counts_their_pictures() -> None:
    mapping = chat_mapping()
    row = {"messages": FORMS["LLaVA"][0], "images": '["a.jpg"]', "more": 1}
    sample = mapping.sample(0, row, "k", ["jpg"])
    assert sample.messages[0]["content"] == ASKED
    assert (sample.images, sample.target, mapping.question, mapping.answer_template) == (("jpg",), {}, None, None)
    with pytest.raises(ValueRejected, match="names pictures"):
        mapping.sample(0, row, "k", ["jpg", "png"])
    with pytest.raises(ValueRejected, match="bad-chat"):
        mapping.sample(0, row | {"messages": "x"}, "k", ["jpg"])
    with pytest.raises(MappingError, match="leave out prompt"):
        chat_mapping(prompt="x")
