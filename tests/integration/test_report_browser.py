"""The report in a real browser: nothing complains, filter, search and keyboard work, in light and in dark."""

import math
import random
from pathlib import Path

import pytest
from PIL import Image

from tests.factories.browser import Tab, browse, chromium
from train.score.report import MOST_PICTURES, Curve, Report, Shown, render, thumbnail
from train.score.scores import Truth, score_split
from train.score.slices import slice_scores

FIELDS = {"title": "text", "category": "category", "price": "number"}
KINDS = ("coats", "scarves", "hats", "skirts")

needs_browser = pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine: apt-get install chromium")


def report(count: int, pictures: int) -> Report:
    """A report of so many samples, of which the first so many have pictures."""
    generator = random.Random(0)
    truths, answers = [], []
    for row in range(count):
        kind = generator.choice(KINDS)
        price = round(math.exp(generator.gauss(5, 1)), 1)
        title = f"{kind[:-1].title()} {row % 97} <b>in wool</b>"
        values = {"title": title, "category": kind, "price": price}
        truths.append(Truth(key=f"key-{row}", group=f"key-{row}", values=values))
        said_price = None if row % 50 == 7 else round(price * math.exp(generator.gauss(0, 0.1)), 1)
        answers.append({**values, "price": said_price})
        if row % 9 == 0:
            answers[-1]["category"] = generator.choice(KINDS)
    training = [truth.values for truth in truths[:500]]
    few, said = truths[:1000], answers[:1000]
    controls = {"shuffled": [dict.fromkeys(FIELDS) for _ in few]}
    noise = [Image.effect_noise((112, 112), 40 + number).convert("RGB") for number in range(20)]
    thumbnails = [thumbnail(picture) for picture in noise]
    return Report(
        run="browsed", split="test", held_out=True, date="2024-01-02", model={"method": "LoRA"},
        data={"source": "a.csv"},
        fields=FIELDS,
        scores=score_split(FIELDS, few, said, training, controls),
        slices=slice_scores(FIELDS, few, said, training),
        samples=[
            Shown(key=truth.key, thumbnails=(thumbnails[row % 20],) if row < pictures else (), truths=truth.values,
                  predicted=answer, answer=str(answer), logprob=-generator.random())
            for row, (truth, answer) in enumerate(zip(truths, answers, strict=True))
        ],
        splits={"test": {"samples": count, "pictures": count, "bytes": 12_345_678}}, rejected={"truncated": 3},
        curve=Curve(train_loss=[(step, 3 / step) for step in range(1, 300)], validation_loss=[(100, 0.1), (200, 0.05)],
                    lr=[(step, 1e-3) for step in range(1, 300)]),
        course={"throughput": "1,234 tokens a second"}, hashes={"checkpoint": "0" * 64}, config="a: 1",
        versions={"torch": "2"}, commands=["python -m train.evaluate runs/browsed"],
    )  # fmt: skip


@needs_browser
def test_the_report_works_in_a_browser(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(render(report(300, 40)), encoding="utf-8")

    async def look(tab: Tab) -> None:
        await tab.colours("light")
        await tab.open(page)
        text = 'document.getElementById("count").textContent'
        bodies = 'document.querySelectorAll("#rows tbody").length'
        assert await tab.value(text) == "300 of 300 shown"
        assert await tab.value(bodies) >= 60
        assert await tab.value("document.querySelector('#rows .truth').textContent.includes('<b>in wool</b>')")
        # The search by the keyboard alone: Tab leads to it, Enter is not needed.
        for _ in range(40):
            if await tab.value('document.activeElement.id === "search"'):
                break
            await tab.press("Tab", 9)
        await tab.type("key-299")
        await tab.until(f'{text} === "1 of 300 shown"')
        assert await tab.value(bodies) == 1
        await tab.choose("search", "", "input")
        await tab.until(f'{text} === "300 of 300 shown"')
        for wanted in ("right", "wrong", "unread", "right 1", "wrong 2"):
            await tab.choose("filter", wanted)
            shown = int((await tab.value(text)).split()[0])
            assert 0 < shown < 300, wanted
        await tab.choose("filter", "")
        await tab.choose("order", "error")
        assert await tab.value('document.querySelector("#rows tbody").textContent.includes("could not be read")')
        ground = []
        for scheme in ("light", "dark"):
            await tab.colours(scheme)
            ground.append(await tab.value("getComputedStyle(document.body).backgroundColor"))
            await tab.screenshot(tmp_path / f"{scheme}.png")
        assert ground[0] != ground[1]
        assert tab.errors == []

    browse(look)


@needs_browser
@pytest.mark.soak
def test_ten_thousand_samples_open_in_three_seconds(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(render(report(10_000, MOST_PICTURES)), encoding="utf-8")
    assert page.stat().st_size < 30e6
    seconds = []

    async def look(tab: Tab) -> None:
        for _ in range(3):
            seconds.append(await tab.open(page))
        assert await tab.value('document.getElementById("count").textContent') == "10,000 of 10,000 shown"
        search = "const begun = performance.now(); search.value = 'key-9999'; show(); return performance.now() - begun;"
        took = await tab.value(f"(() => {{ {search} }})()")
        print(f"{page.stat().st_size / 1e6:.1f} MB, opened in {min(seconds):.2f} s, searched in {took:.0f} ms")
        assert tab.errors == []

    browse(look)
    assert min(seconds) < 3
