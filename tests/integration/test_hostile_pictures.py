"""A catalogue of pictures that hurt: every row is kept or rejected with its reason, in bounded memory."""

import csv
import json
import sys
from pathlib import Path

from PIL import Image

from data.images import ORIENTATION
from data.manifest import Manifest
from data.shards import iter_samples
from tests.factories.hostile_pictures import drawn, encoded, hostile
from tests.factories.memory import watch

MAPPING = """
key: id
pictures: [image]
prompt: "<|image_1|>"
answer: "{id}"
split: {fractions: {train: 1.0}}
"""
MOST_MEMORY = 400 << 20


def test_every_hostile_picture_is_a_row_once_and_memory_is_bounded(root: Path, tmp_path: Path) -> None:
    cases = list(hostile())
    expected = {}
    with (tmp_path / "rows.csv").open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["id", "image"])
        for number, (name, data, reasons) in enumerate(cases):
            (tmp_path / f"{name}.jpg").write_bytes(data)
            rows.writerow([name, f"{name}.jpg"])
            expected[number] = reasons.split()
        large, exif = drawn(100, 100).resize((6900, 6900)), Image.Exif()
        exif[ORIENTATION] = 6
        for name, options in (("large", {}), ("turned", {"exif": exif})):
            (tmp_path / f"{name}.jpg").write_bytes(encoded(large, quality=30, **options))
            rows.writerow([name, f"{name}.jpg"])
            expected[len(expected)] = ["ok"]
    (tmp_path / "mapping.yaml").write_text(MAPPING)
    arguments = ["--preset", "mapping.yaml", "--source", "rows.csv", "--output", "out", "--max-rejected", "1"]
    command = [sys.executable, str(root / "data" / "build.py"), *arguments]
    done = watch(command, tmp_path)
    assert done.code == 0, done.said
    assert done.peak < MOST_MEMORY
    out = tmp_path / "out"
    found = {
        sample.source["row"]: "ok" for split in Manifest.load(out).shards for sample, _ in iter_samples(out, split)
    }
    for line in (out / "rejected.jsonl").read_text().splitlines():
        one = json.loads(line)
        assert one["row"] not in found
        assert one["detail"]
        found[one["row"]] = "ok" if one["reason"] in ("duplicate", "leak") else one["reason"]
    assert sorted(found) == sorted(expected)
    assert {row: reason for row, reason in found.items() if reason not in expected[row]} == {}
