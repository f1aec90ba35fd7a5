"""Verifying shards: whatever is not as the build left it is named, whatever hashes still agree."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data.build import main as build
from data.index import Index, write_index
from data.manifest import Manifest, file_sha256
from data.verify import main as verify

MAPPING = """
key: id
prompt: "What is {title}?"
answer: "{title} for {price}"
fields: {price: {column: price, type: number}}
split: {fractions: {train: 1.0}}
"""
Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build of twelve rows, of which two are rejected."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "mapping.yaml").write_text(MAPPING)
    prices = {3: "soon", 5: ""}
    lines = ["id,title,price", *(f"id-{row},coat {row},{prices.get(row, row)}" for row in range(12))]
    (folder / "rows.csv").write_text("\n".join(lines) + "\n")
    arguments = ["--preset", str(folder / "mapping.yaml"), "--source", str(folder / "rows.csv"), "--workers", "0"]
    arguments += ["--max-rejected", "1", "--shard-samples", "6"]
    assert build([*arguments, "--output", str(folder / "out")]) == 0
    return folder / "out"


def rejected(out: Path, *lines: str) -> None:
    (out / "rejected.jsonl").write_text("".join(line + "\n" for line in lines))


def row(number: int, reason: str) -> str:
    return json.dumps({"row": number, "reason": reason})


def manifest(out: Path, **changes: Any) -> None:
    replace(Manifest.load(out), **changes).save(out)


def append(out: Path) -> None:
    """Bytes behind the last sample of a shard, with which its size and hash agree."""
    path = out / "train/shard-000000.tar"
    data = path.read_bytes()
    path.write_bytes(data[:-1024] + b"a sample nobody knows".ljust(512, b"\0") + data[-1024:])
    shards = Manifest.load(out).shards
    shards["train"][0] |= {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    sizes = sum(shard["bytes"] for shard in shards["train"])
    manifest(out, shards=shards, counts={"train": {"samples": 10, "pictures": 0, "bytes": sizes}})


def index(out: Path, change: Callable[[list[Any]], list[Any]]) -> None:
    path = out / "train/index.arrow"
    opened = Index.open(path)
    entries = [opened.entry(number) for number in range(len(opened))]
    write_index(path, change(entries))


def first(**changes: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda entries: [replace(entries[0], **changes), *entries[1:]]


CASES: dict[str, tuple[Damage, str]] = {
    "a rejected row is gone": (
        lambda out: rejected(out, row(3, "bad-number")),
        r"1 rows are neither in a shard nor in rejected.jsonl: 5\n",
    ),
    "its reason is counted otherwise": (
        lambda out: rejected(out, row(3, "bad-number"), row(5, "bad-number")),
        r"rejected.jsonl: 2 rows rejected as bad-number, the manifest says 1\n",
    ),
    "a row is rejected twice": (
        lambda out: rejected(out, row(3, "bad-number"), row(3, "missing")),
        r"rejected.jsonl, line 2: is row 3, which stands elsewhere already\n",
    ),
    "a row is in a shard and rejected": (
        lambda out: rejected(out, row(3, "bad-number"), row(4, "missing")),
        r"rejected.jsonl, line 2: is row 4, which stands elsewhere already\n",
    ),
    "a row that the catalogue has not": (
        lambda out: rejected(out, row(3, "bad-number"), row(12, "missing")),
        r"is said to be row 12 of a catalogue of 12 rows\n",
    ),
    "a line that is cut": (
        lambda out: rejected(out, row(3, "bad-number"), '{"row": 5, "rea'),
        r"rejected.jsonl, line 2: not the JSON of a rejected row",
    ),
    "no rejected.jsonl": (lambda out: (out / "rejected.jsonl").unlink(), r"rejected.jsonl: missing\n"),
    "bytes behind the samples": (append, r"shard-000000.tar: from byte [\d,]+ on there is something else"),
    "a sample that the index leaves out": (
        lambda out: index(out, lambda entries: [*entries[:2], *entries[3:]]),
        r"shard-000000.tar: sample 'id-4' at byte [\d,]+: the bytes from [\d,]+ on belong to no sample\n",
    ),
    "the last sample of a shard left out": (
        lambda out: index(out, lambda entries: [*entries[:5], *entries[6:]]),
        r"shard-000000.tar: 5 samples in the index, the manifest says 6\n",
    ),
    "a sample twice": (
        lambda out: index(out, lambda entries: [entries[0], *entries]),
        r"sample 'id-0' at byte 0: it begins within the sample before it\n",
    ),
    "another key": (lambda out: index(out, first(key="id-x")), r"at byte 0: the tar calls json .id-0.json., of"),
    "another size of text": (lambda out: index(out, first(text_bytes=7)), r"bytes of text, the index says 7\n"),
    "other counts": (
        lambda out: manifest(out, counts={"train": {"samples": 11, "pictures": 0, "bytes": 1}}),
        r"train: 10 samples, the manifest says 11\n",
    ),
    "a shard that nobody lists": (
        lambda out: shutil.copy(out / "train/shard-000000.tar", out / "train/shard-000007.tar"),
        r"shard-000007.tar: the manifest does not list it\n",
    ),
}


def test_a_whole_folder_is_whole(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify([str(whole)]) == 0
    assert "10 samples, every hash, member and picture; 2 rows rejected" in capsys.readouterr().out


@pytest.mark.parametrize("case", CASES)
def test_what_no_hash_of_a_shard_tells_is_named(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    damage, says = CASES[case]
    shutil.copytree(whole, tmp_path / "out", ignore=shutil.ignore_patterns("downloads"))
    damage(tmp_path / "out")
    assert verify([str(tmp_path / "out")]) == 1
    assert re.search(says, capsys.readouterr().out)
