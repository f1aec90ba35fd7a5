"""The report in a real browser: nothing complains, filter, search and keyboard work, in light and in dark."""

import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from tests.factories.browser import Tab, browse, chromium
from train.score.report import MOST_PICTURES, Curve, Report, Shown, render, thumbnail
from train.score.scores import Truth, score_split
from train.score.slices import slice_scores

FIELDS = {"title": "text", "category": "category", "price": "number"}
KINDS = ("coats", "scarves", "hats", "skirts")

# The texts whose contrast with what lies behind them is below 4.5 (WCAG 2.2, 1.4.3), with that contrast.
FAINT = """(() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const light = (colour) => {
    const [r, g, b] = colour.map((one) => (one /= 255) <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    let over = [0, 0, 0], left = 1;
    for (let one = element; one && left > 0.01; one = one.parentElement) {
      const [r, g, b, a] = rgba(getComputedStyle(one).backgroundColor);
      over = over.map((sum, place) => sum + left * a * [r, g, b][place]);
      left *= 1 - a;
    }
    return over;
  };
  const found = new Map();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility()) continue;
    if (element.matches("script, title, .zero, option")) continue;
    const style = getComputedStyle(element);
    const text = light(rgba(element.closest("svg") ? style.fill : style.color).slice(0, 3));
    const ground = light(behind(element));
    const contrast = (Math.max(text, ground) + 0.05) / (Math.min(text, ground) + 0.05);
    if (contrast < 4.5) found.set(element.tagName + "." + (element.className.baseVal ?? element.className), contrast);
  }
  return [...found];
})()"""

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
        assert await tab.value(bodies) == 24
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
        # What fits nothing says so, and the way back is a button.
        await tab.choose("search", "no such product", "input")
        await tab.until(f'{text} === "0 of 300 shown"')
        assert await tab.value("document.querySelector('#rows .none').textContent.startsWith('No sample fits')")
        await tab.value("document.querySelector('#rows .none button').click()")
        assert await tab.value(text) == "300 of 300 shown"
        # More come by the button alone, so that what follows the samples can be reached.
        await tab.value("document.getElementById('more').scrollIntoView()")
        assert await tab.value(bodies) == 24
        await tab.value("document.getElementById('more').click()")
        assert await tab.value(bodies) == 120
        assert await tab.value("document.querySelectorAll('#rows img').length") == 40
        await tab.choose("order", "error")
        assert await tab.value('document.querySelector("#rows tbody").textContent.includes("could not be read")')
        ground = []
        for scheme in ("light", "dark"):
            await tab.colours(scheme)
            ground.append(await tab.value("getComputedStyle(document.body).backgroundColor"))
            await tab.screenshot(tmp_path / f"{scheme}.png")
            assert await tab.value(FAINT) == [], scheme
        assert ground[0] != ground[1]
        # On a telephone nothing but tables that scroll by themselves is wider than the screen.
        await tab.send("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=1, mobile=True)
        assert await tab.value("document.documentElement.scrollWidth") == 390
        await tab.screenshot(tmp_path / "narrow.png")
        assert tab.errors == []

    browse(look)


@needs_browser
def test_long_names_and_texts_stay_inside_the_page(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    whole = report(30, 10)
    samples = [
        replace(
            sample,
            key=sample.key + "k" * 200,
            truths={**sample.truths, "title": "Unbroken" * 60},
            predicted={**sample.predicted, "title": "word " * 90, "category": "c" * 120},
        )
        for sample in whole.samples
    ]
    page.write_text(render(replace(whole, run="a-very-long-name-of-a-run-" * 6, samples=samples)), encoding="utf-8")

    async def look(tab: Tab) -> None:
        for width in (1280, 390):
            await tab.send(
                "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
            )
            await tab.open(page)
            assert await tab.value("document.documentElement.scrollWidth") == width
            await tab.screenshot(tmp_path / f"long-{width}.png")
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
