"""Looking before and after: a mapping to start from, the first samples as a page, and what a folder holds."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from rich.console import Console

from data.build import main as build
from data.mapping_file import make_mapping
from data.show import main as show_main
from data.show import show
from data.sources import open_source
from data.suggest import suggest_mapping

EVIL = "<script>alert(1)</script> [b]"


@pytest.fixture
def catalogue(tmp_path: Path) -> Path:
    """A dozen rows with hostile titles; one picture is missing, one is no picture, one stands at a URL."""
    rows = ["sku;photo;department;price;title"]
    for number in range(12):
        out = io.BytesIO()
        Image.new("RGB", (40, 30), (number * 20, 0, 0)).save(out, "PNG")
        (tmp_path / f"{number}.png").write_bytes(b"<html>" if number == 4 else out.getvalue())
        photo = "http://127.0.0.1:9/x.png" if number == 5 else f"{number}.png"
        rows.append(f"S{number};{photo};{'coats' if number % 2 else 'hats'};{number}.50;{EVIL} {number}")
    (tmp_path / "3.png").unlink()
    (tmp_path / "rows.csv").write_text("\n".join(rows))
    return tmp_path / "rows.csv"


def test_a_mapping_is_suggested_that_builds_as_it_is(
    catalogue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build(["--source", str(catalogue)]) == 0
    text = capsys.readouterr().out
    assert "#   department: hats | coats\n" in text
    assert f"#   title: {EVIL} 0 | {EVIL} 1 | {EVIL} 2\n" in text
    mapping = make_mapping(yaml.safe_load(text), "suggested")
    assert (mapping.key, mapping.pictures) == ("sku", ["photo"])
    assert {name: rule.type for name, rule in mapping.fields.items()} == {
        "title": "text",
        "department": "category",
        "price": "number",
    }
    (tmp_path / "mapping.yaml").write_text(text)
    out = tmp_path / "shards"
    arguments = ["--preset", str(tmp_path / "mapping.yaml"), "--source", str(catalogue), "--output", str(out),
                 "--workers", "0", "--no-probe", "--max-rejected", "1", "--max-failed-downloads", "1"]  # fmt: skip
    assert build([*arguments, "--dry-run"]) == 0
    assert [path.name for path in out.iterdir()] == ["dry-run.html"]
    page = (out / "dry-run.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 9
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; [b] 7" in page
    assert 'href="http://127.0.0.1:9/x.png"' in page

    assert build(arguments) == 0
    printed = io.StringIO()
    show(out, 1, Console(file=printed, width=200))
    said = printed.getvalue()
    for wanted in ("department of", "coats", "(5 · 50 · 95 %)", "refused-address", "row 4: 4.png", f"Title: {EVIL}"):
        assert wanted in said
    assert show_main([str(out), "--html", str(tmp_path / "page.html")]) == 0
    assert "refused-address: 1" in (tmp_path / "page.html").read_text()


TURNS = [{"from": "human", "value": "<image>\nx"}, {"from": "gpt", "value": "y"}]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"id": "a", "image": "a.jpg", "conversations": TURNS},
            {"chat": "conversations", "pictures": ["image"]},
        ),
        ({"file_name": "a.jpg", "text": "a coat"}, {"pictures": ["file_name"], "answer": "{text}"}),
        ({"photos": ["a.jpg", "b.jpg"], "text": "a coat"}, {"prompt": "<|images|>\nWhat is shown here?"}),
        ({"text": "a coat", "split": "train"}, {"split": {"column": "split"}, "pictures": []}),
        ({"n": 5}, {"answer": "{n}"}),
    ],
)
def test_suggestions_for_the_forms_people_have(tmp_path: Path, row: dict[str, Any], expected: dict[str, Any]) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    suggested = yaml.safe_load(suggest_mapping(open_source(str(tmp_path / "rows.jsonl")), "rows.jsonl"))
    make_mapping(suggested, "suggested")
    assert suggested | expected == suggested
