"""The report is one file that loads nothing, escapes everything and shows what the scores say."""

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
from PIL import Image

from train.score.charts import Line, Point, Whisker, line_chart, scatter_chart, smoothed, whisker_chart
from train.score.report import THUMBNAIL_SIDE, Curve, Report, Shown, render, shown_keys, thumbnail, verdicts
from train.score.scores import Truth, score_split

FIELDS = {"title": "text", "category": "category", "price": "number"}
HOSTILE = '<script>alert("1")</script><img src=x onerror=alert(2)>&"\'</td>'


class Page(HTMLParser):
    """Tags and their attributes, and the text between them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def report(count: int = 30, title: str = "Coat") -> Report:
    truths = [
        Truth(
            key=f"key{row}",
            group=f"key{row}",
            values={"title": title, "category": "coat" if row % 3 else HOSTILE, "price": 100.0 + row},
        )
        for row in range(count)
    ]
    answers = [dict(truth.values) for truth in truths]
    answers[0] = dict.fromkeys(FIELDS)
    answers[1] = {**answers[1], "price": 9.0}
    training = [truth.values for truth in truths]
    picture = thumbnail(Image.new("RGB", (30, 50), "red"))
    return Report(
        run="run <one>",
        split="test",
        held_out=True,
        date="2024-01-02",
        model={"checkpoint": HOSTILE},
        data={"shards": "shards"},
        fields=FIELDS,
        scores=score_split(FIELDS, truths, answers, training, {"shuffled": [dict.fromkeys(FIELDS) for _ in truths]}),
        samples=[
            Shown(
                key=truth.key, thumbnails=(picture,), truths=truth.values, predicted=answer, answer=title, logprob=-1.0
            )
            for truth, answer in zip(truths, answers, strict=True)
        ],
        splits={"test": {"samples": count, "pictures": count, "bytes": 12_345}},
        rejected={HOSTILE: 3},
        curve=Curve(train_loss=[(1, 2.0), (2, 1.0)], validation_loss=[(2, 1.5)], lr=[(1, 1e-3), (2, 5e-4)]),
        config="a: <b>",
        versions={"torch": "2"},
        commands=["python -m train.evaluate 'runs/<x>'"],
    )


def test_nothing_from_the_data_becomes_markup() -> None:
    page = Page(render(report(title=HOSTILE)))
    assert sum(tag == "script" for tag, _ in page.tags) == 2
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert HOSTILE in page.text


def test_the_page_loads_nothing_from_anywhere() -> None:
    page = Page(render(report()))
    sources = [
        value or "" for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")
    ]
    assert sources
    assert all(source.startswith(("data:image/jpeg;base64,", "#")) for source in sources)
    policy = next(attributes["content"] for _, attributes in page.tags if "http-equiv" in attributes)
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:")
    nonce = next(attributes["nonce"] for tag, attributes in page.tags if tag == "script" and "nonce" in attributes)
    assert f"script-src 'nonce-{nonce}'" in policy


def gallery(page: str) -> dict[str, Any]:
    """The samples that the page's script shows."""
    found = re.search(r'<script type="application/json" id="samples">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


def test_a_page_without_all_pictures_says_how_many_it_has() -> None:
    whole = report(count=5)
    samples = [whole.samples[0], *(replace(sample, thumbnails=()) for sample in whole.samples[1:])]
    assert "With the pictures of 1 sample:" in Page(render(replace(whole, samples=samples))).text
    assert "With the pictures of" not in Page(render(whole)).text


def test_every_sample_has_its_picture_truth_and_prediction() -> None:
    data = gallery(render(report(count=5)))
    assert data["fields"] == list(FIELDS)
    assert [sample["right"] for sample in data["samples"]] == [[False] * 3, [True, True, False], *[[True] * 3] * 3]
    assert [sample["unread"] for sample in data["samples"]] == [True, *[False] * 4]
    assert all(sample["key"] == f"key{row}" for row, sample in enumerate(data["samples"]))
    assert all(sample["pictures"][0].startswith("data:image/jpeg;base64,") for sample in data["samples"])
    assert data["samples"][1]["off"][2] == "91.1 %"


def test_the_same_report_gives_the_same_bytes() -> None:
    assert render(report()) == render(report())


def test_the_gallery_is_cut_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.score.report.MOST_SAMPLES", 20)
    page = render(report(count=27))
    assert len(gallery(page)["samples"]) == 20
    assert "The first 20 of 27 samples" in Page(page).text


def test_pictures_are_needed_of_the_worst_and_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.score.report.MOST_PICTURES", 10)
    whole = report(count=40)
    last = whole.samples[-1]
    samples = [
        *whole.samples[:-1],
        Shown(key=last.key, thumbnails=(), truths=last.truths, predicted={"price": 1e6}, answer="", logprob=0.0),
    ]
    keys = shown_keys(FIELDS, samples)
    assert len(keys) == 10
    assert keys[:2] == ["key0", last.key]
    assert samples[30].key not in keys


def test_verdicts_name_the_scores_that_are_not_better() -> None:
    whole = report()
    sentences = verdicts(whole.scores)
    assert sentences[0][0] is False
    assert "title: exact match" in sentences[0][1]
    assert sentences[1] == (True, "With pictures shuffled no score beats its baseline.")


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "LA", "I;16", "1"])
def test_thumbnails_are_small_upright_jpegs_of_any_mode(mode: str) -> None:
    uri = thumbnail(Image.new(mode, (400, 200)))
    picture = Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))))
    assert picture.format == "JPEG"
    assert picture.size == (THUMBNAIL_SIDE, THUMBNAIL_SIDE // 2)


def test_what_is_transparent_becomes_white() -> None:
    uri = thumbnail(Image.new("RGBA", (20, 20), (0, 0, 0, 0)))
    picture = Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))))
    assert picture.getpixel((10, 10)) == (255, 255, 255)


def test_charts_leave_out_what_is_not_finite_and_vanish_without_data() -> None:
    chart = line_chart([Line(name="train", label="loss", points=[(1, float("nan")), (2, 1.0), (3, 0.5)])], "Loss")
    assert "nan" not in chart
    assert chart.count("polyline") == 1
    assert line_chart([Line(name="lr", label="lr", points=[])], "none") == ""
    assert scatter_chart([], 0.1, "none") == ""
    assert line_chart([Line(name="lr", label="lr", points=[(1, 0.5)])], "one point")


def test_infinite_errors_are_drawn_at_the_edge() -> None:
    row = Whisker(label="a", style="model", value=float("inf"), low=0.2, high=float("inf"), shown="∞")
    chart = whisker_chart([row], "errors")
    assert not re.search(r"\b(inf|nan)\b", chart)


def test_labels_in_charts_are_escaped() -> None:
    chart = scatter_chart([Point(truth=10.0, predicted=11.0, right=True, label=HOSTILE)], 0.1, HOSTILE)
    assert "<script>" not in chart


def test_a_running_mean_keeps_ends_and_level() -> None:
    assert smoothed([(step, 2.0) for step in range(10)], 4) == [(step, 2.0) for step in range(10)]
