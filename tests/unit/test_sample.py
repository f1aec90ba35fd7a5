"""The sample catalogue: the same bytes for a seed, everything visible, and broken rows that are said to be broken."""

import csv
import io
import json
import threading
import unicodedata
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from data.sample.__main__ import main
from data.sample.broken import KINDS, broken
from data.sample.catalogue import BROKEN, CATALOGUE, PICTURES, URLS, rows_of, write_sample
from data.sample.draw import draw_picture, picture_format
from data.sample.rows import CATEGORIES, COLUMNS, FABRICS, TRIMS, catalogue_row, draw_item
from data.sample.serve import picture_server
from data.schema import UserError

ROWS = 208


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sample drawn by two processes, large enough to hold every kind of broken row."""
    folder = tmp_path_factory.mktemp("sample") / "catalogue"
    write_sample(folder, ROWS, seed=0, processes=2)
    return folder


def faults(folder: Path) -> dict[int, dict[str, Any]]:
    lines = (folder / BROKEN).read_text(encoding="utf-8").splitlines()
    return {fault["row"]: fault for fault in map(json.loads, lines)}


def test_fewer_rows_by_one_process_are_a_prefix_with_the_same_bytes(sample: Path, tmp_path: Path) -> None:
    write_sample(tmp_path / "few", 49, seed=0, processes=1)
    few, many = (folder / CATALOGUE for folder in (tmp_path / "few", sample))
    assert many.read_bytes().startswith(few.read_bytes())
    assert (sample / BROKEN).read_bytes().startswith((tmp_path / "few" / BROKEN).read_bytes())
    pictures = list((tmp_path / "few" / PICTURES).iterdir())
    assert len(pictures) > 40
    for picture in pictures:
        assert picture.read_bytes() == (sample / PICTURES / picture.name).read_bytes()


def test_another_seed_gives_other_products_and_pictures() -> None:
    codes = [{draw_item(seed, number).product_code for number in range(3040)} for seed in (0, 1)]
    assert [len(some) for some in codes] == [3040, 3040]
    assert codes[0].isdisjoint(codes[1])
    assert draw_picture(0, draw_item(0, 3)) != draw_picture(1, draw_item(1, 3))


def test_catalogue_has_the_seventeen_columns_with_their_types(sample: Path) -> None:
    with (sample / CATALOGUE).open(encoding="utf-8", newline="") as file:
        assert tuple(next(csv.reader(file))) == COLUMNS
    rows = rows_of(sample / CATALOGUE)
    assert len(rows) == ROWS
    for row in rows:
        assert row["product_code"].isdecimal()
        assert row["flg_discount"] in ("0", "1")
        for name in ("full_price", "price", "full_price_eur", "price_eur"):
            assert "." in row[name]
            assert float(row[name]) > 0
        assert (float(row["price"]) < float(row["full_price"])) == (row["flg_discount"] == "1")
        assert row["imageurl"] in ("", "None") or row["imageurl"].startswith(f"{PICTURES}/")
    written = {name: str(value) for name, value in catalogue_row(0, draw_item(0, 5), rows[5]["imageurl"]).items()}
    assert rows[5] == written


def test_fewer_than_one_row_in_twenty_is_broken_however_many_are_drawn() -> None:
    count = 0
    for number in range(3040):
        count += broken(0, number) is not None
        assert count < 0.05 * (number + 1)
    assert count > 0.03 * 3040


def test_broken_rows_are_broken_as_the_file_says_and_all_others_are_whole(sample: Path) -> None:
    rows, said = rows_of(sample / CATALOGUE), faults(sample)
    assert {fault["kind"] for fault in said.values()} == set(KINDS)
    for number, row in enumerate(rows):
        fault = said.get(number)
        kind = fault["kind"] if fault else "whole"
        path = sample / row["imageurl"]
        assert fault is None or fault["product_code"] == int(row["product_code"])
        if kind in ("no_url", "none_url"):
            assert row["imageurl"] == {"no_url": "", "none_url": "None"}[kind]
        elif kind == "missing":
            assert not path.exists()
        elif kind in ("truncated", "html", "empty"):
            with pytest.raises(OSError), Image.open(path) as picture:
                picture.load()
        else:
            with Image.open(path) as picture:
                picture.load()
        if fault is not None and "of" in fault:
            repeated = rows[fault["of"]]
            assert fault["of"] not in said
            assert row["product_code"] == repeated["product_code"]
            assert (row == repeated) == (kind == "duplicate")
            assert path.read_bytes() == (sample / repeated["imageurl"]).read_bytes()
    usable = [row["product_code"] for number, row in enumerate(rows) if number not in said]
    assert len(set(usable)) == len(usable)


def test_pictures_vary_in_format_mode_orientation_and_aspect() -> None:
    seen: Counter[str] = Counter()
    for number in range(200):
        item = draw_item(0, number)
        with Image.open(io.BytesIO(draw_picture(0, item))) as picture:
            width, height = ImageOps.exif_transpose(picture).size
            seen.update([str(picture.format), picture.mode])
            seen["turned"] += picture.getexif().get(0x0112, 1) != 1
        assert 50 <= min(width, height) <= max(width, height) <= 320
        assert max(width, height) <= 2.3 * min(width, height)
        seen["tall"] += height > 1.4 * width
        seen["wide"] += width > 1.4 * height
    assert all(seen[name] for name in ("JPEG", "PNG", "WEBP", "RGB", "RGBA", "P", "L", "turned", "tall", "wide")), seen


def test_picture_turned_by_exif_stands_upright_when_read() -> None:
    """An umbrella tells up from down: its broad canopy is above, its thin stick below."""
    items = [draw_item(0, number) for number in range(3040)]
    turned = [
        item
        for item in items
        if item.category == "UMBRELLAS" and item.script == "latin" and picture_format(0, item).orientation != 1
    ]
    assert len(turned) >= 4
    for item in turned:
        with Image.open(io.BytesIO(draw_picture(0, item))) as picture:
            grey = np.asarray(ImageOps.exif_transpose(picture).convert("L"), dtype=np.float32)
        ink = np.abs(grey - np.median(grey)) > 45
        rows = np.flatnonzero(ink.any(axis=1))
        middle = (rows[0] + rows[-1]) // 2
        assert ink[:middle].sum() > 2 * ink[middle:].sum()


def test_titles_follow_from_what_is_seen_and_come_in_four_scripts_and_with_accents() -> None:
    titles: dict[tuple[str, ...], set[str]] = {}
    scripts: Counter[str] = Counter()
    for number in range(3040):
        item = draw_item(0, number)
        title = str(catalogue_row(0, item, "")["title"])
        titles.setdefault((item.category, item.fabric, item.colour, item.script), set()).add(title)
        scripts.update({unicodedata.name(letter).split()[0] for letter in title if letter.isalpha()})
        scripts["accent"] += "É" in title
        assert len(title.split()) <= 5
    assert all(len(some) == 1 for some in titles.values())
    assert scripts["LATIN"] > 0.88 * 3040
    assert all(scripts[name] > 40 for name in ("CYRILLIC", "GREEK", "CJK", "accent"))


def test_price_is_what_the_visible_attributes_explain() -> None:
    items = [draw_item(0, number) for number in range(3040)]
    prices = np.array([item.full_price for item in items])
    explained = np.array([CATEGORIES[i.category][2] * FABRICS[i.fabric][1] * TRIMS[i.trim][1] for i in items])
    assert np.median(np.abs(explained - prices) / prices) < 0.04
    assert np.median(np.abs(np.median(prices) - prices) / prices) > 0.35
    assert np.all(prices % 10 == 0)
    assert 0.17 < Counter(item.category for item in items).most_common(1)[0][1] / 3040 < 0.21


def test_grey_pictures_are_of_grey_things() -> None:
    items = [draw_item(0, number) for number in range(400)]
    modes = {item.colour: set[str]() for item in items}
    for item in items:
        modes[item.colour].add(picture_format(0, item).mode)
    assert "L" in modes.pop("grey")
    assert not any("L" in seen for seen in modes.values())


def test_same_sample_is_kept_and_anything_else_in_the_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "sample"
    folder.mkdir()
    assert write_sample(folder, 3, seed=0) is not None
    assert write_sample(folder, 3, seed=0) is None
    with pytest.raises(UserError, match=r"holds another sample .*3 rows, seed 0"):
        write_sample(folder, 4, seed=0)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep me")
    with pytest.raises(UserError, match="not empty"):
        write_sample(tmp_path / "mine", 3, seed=0)
    assert (tmp_path / "mine" / "letter.txt").read_text() == "keep me"
    with pytest.raises(UserError, match="is a file"):
        write_sample(tmp_path / "mine" / "letter.txt", 3, seed=0)
    assert {path.name for path in tmp_path.iterdir()} == {"sample", "mine"}


def test_served_catalogue_names_urls_that_give_the_pictures(sample: Path) -> None:
    rows, said = rows_of(sample / CATALOGUE), faults(sample)
    with picture_server(sample, 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            served = rows_of(sample / URLS)
            assert served[0]["imageurl"].startswith("http://127.0.0.1:")
            with urllib.request.urlopen(served[0]["imageurl"], timeout=30) as answer:
                assert answer.read() == (sample / rows[0]["imageurl"]).read_bytes()
            for number, fault in said.items():
                if fault["kind"] in ("no_url", "none_url"):
                    assert served[number]["imageurl"] == rows[number]["imageurl"]
            with pytest.raises(UserError, match="cannot be served"):
                picture_server(sample, server.server_address[1])
        finally:
            server.shutdown()
            thread.join()


def test_command_says_in_one_line_what_it_drew_and_how_to_mend_a_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "sample"), "--rows", "25", "--processes", "1"]) == 0
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert "25 rows, 24 pictures, 1 rows broken on purpose (1 missing)" in said
    assert main([str(tmp_path / "sample"), "--rows", "0"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
