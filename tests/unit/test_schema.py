"""Samples: what is taken, what is refused, and their bytes."""

import pytest

from data.schema import Rejected, Sample, SampleError, nearest

USER = {"role": "user", "content": "<|image_1|>What?"}
ANSWER = {"role": "assistant", "content": "A coat"}


def sample(**changes: object) -> Sample:
    parts = {"key": "a-1", "messages": (USER, ANSWER), "images": ("jpg",), "target": {"t": 1.5}, "source": {"row": 3}}
    return Sample(**(parts | changes))  # type: ignore[arg-type]


def test_a_sample_survives_its_json() -> None:
    one = sample(target={"title": "Пальто 外套 é <|end|>"})
    assert Sample.from_json(one.to_json(), "a-1") == one
    assert one.to_json() == sample(target={"title": "Пальто 外套 é <|end|>"}).to_json()
    assert one.to_json().startswith(b'{"messages":[{"role":"user","content":"<|image_1|>What?"}')


@pytest.mark.parametrize("key", ["", "a.b", "a/b", "a b", "x" * 91, "a\n", "é"])
def test_a_key_that_a_tar_or_webdataset_would_split_is_refused(key: str) -> None:
    with pytest.raises(SampleError, match="key"):
        sample(key=key)


@pytest.mark.parametrize(
    ("text", "images"),
    [
        ("no tag", ("jpg",)),
        ("<|image_1|>", ()),
        ("<|image_2|>", ("jpg",)),
        ("<|image_1|><|image_3|>", ("0.jpg", "1.jpg")),
    ],
)
def test_tags_and_pictures_must_match(text: str, images: tuple[str, ...]) -> None:
    with pytest.raises(SampleError, match="pictures"):
        sample(messages=({"role": "user", "content": text}, ANSWER), images=images)


def test_a_tag_may_be_repeated_and_is_text_in_an_answer() -> None:
    user = {"role": "user", "content": "<|image_2|><|image_01|><|image_2|>"}
    sample(messages=(user, {"role": "assistant", "content": "<|image_7|>"}), images=("0.jpg", "1.png"))


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b"\xff", b'{"messages":[1],"images":[],"target":{},"source":{}}', b"[" * 100_000]
)
def test_bytes_that_are_no_sample_are_a_sample_error(data: bytes) -> None:
    with pytest.raises(SampleError):
        Sample.from_json(data, "a")


@pytest.mark.parametrize("target", [{"x": float("nan")}, {"x": "\ud800"}, {"x": b"bytes"}])
def test_values_that_json_cannot_hold_are_a_sample_error(target: dict[str, object]) -> None:
    with pytest.raises(SampleError, match="cannot be written"):
        sample(target=target).to_json()


def test_a_rejection_is_one_line_whatever_its_detail() -> None:
    line = Rejected(number=1, key=None, stage="map", reason="r", detail="a\nb \ud800").to_json()
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")


def test_the_nearest_name_is_hinted() -> None:
    assert nearest("titel", ["title", "price"]) == ", did you mean 'title'?"
    assert nearest("TITLE", ["title"]) == ", did you mean 'title'?"
    assert nearest("zzz", ["title"]) == ""
