"""Object stores in and out: a catalogue at s3:// becomes shards at s3://, also when the build is killed on the way."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data.build import main as build
from data.shards import iter_samples
from data.verify import main as verify
from tests.factories.object_store import object_store

ROWS = 9
MAPPING = """
key: id
pictures: [image]
prompt: "<|image_1|>\\nWhat is it?"
answer: "{title}"
split: {fractions: {train: 0.8, test: 0.2}}
"""


@pytest.fixture
def store() -> Iterator[Any]:
    """A bucket with a catalogue in it of which one picture is missing."""
    with object_store() as system:
        lines = ["id,image,title"]
        for number in range(ROWS):
            out = io.BytesIO()
            Image.new("RGB", (32, 24 + number % 5), (number * 9, number, 0)).save(out, "PNG")
            if number != 3:
                system.pipe_file(f"bucket/in/pictures/{number}.png", out.getvalue())
            lines.append(f"id-{number},pictures/{number}.png,title {number}")
        system.pipe_file("bucket/in/rows.csv", "\n".join(lines).encode())
        yield system


def contents(system: Any, folder: str) -> dict[str, bytes]:
    return {name.partition(folder + "/")[2]: system.cat_file(name) for name in system.find(folder)}


def killed(command: list[str], root: Path, when: Callable[[], bool]) -> None:
    """Run a command and kill its whole process group as soon as something is so."""
    running = subprocess.Popen(command, cwd=root, start_new_session=True, env=os.environ.copy())
    while running.poll() is None and not when():
        time.sleep(0.02)
    os.killpg(running.pid, signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL


def test_s3_in_and_out_killed_and_resumed(store: Any, root: Path, tmp_path: Path) -> None:
    (tmp_path / "mapping.yaml").write_text(MAPPING)
    arguments = ["--preset", str(tmp_path / "mapping.yaml"), "--source", "s3://bucket/in/rows.csv", "--workers", "0",
                 "--shard-samples", "1", "--max-rejected", "0.2"]  # fmt: skip
    assert build([*arguments, "--output", str(tmp_path / "near")]) == 0
    far = [*arguments, "--output", "s3://bucket/out", "--work", str(tmp_path / "work")]
    command = [sys.executable, "-m", "data.build", *far]
    killed(command, root, lambda: any((tmp_path / "work" / "downloads").glob("*/*/*.png")))  # while it reads
    assert not store.find("bucket/out")
    killed(command, root, lambda: len(store.find("bucket/out")) >= 2)  # while it sends
    there = contents(store, "bucket/out")
    assert there
    assert "manifest.json" not in there
    assert build(far) == 0
    done = contents(store, "bucket/out")
    near = {
        str(path.relative_to(tmp_path / "near")): path.read_bytes()
        for path in (tmp_path / "near").rglob("*")
        if path.is_file() and "downloads" not in path.parts
    }
    assert done == near
    assert json.loads(done["rejected.jsonl"])["reason"] == "missing-file"

    # A new prompt from shards that are far away: no picture is fetched, none is changed.
    new = MAPPING.replace("What is it?", "Name it.").replace('"{title}"', '"It is {title}."')
    (tmp_path / "new.yaml").write_text(new)
    again = ["--preset", str(tmp_path / "new.yaml"), "--source", "s3://bucket/out", "--output", str(tmp_path / "new")]
    assert build([*again, "--workers", "0"]) == 0
    found, was = (
        {one.key: (one, data) for split in ("train", "test") for one, data in iter_samples(tmp_path / name, split)}
        for name in ("new", "near")
    )
    assert {key: data for key, (_, data) in found.items()} == {key: data for key, (_, data) in was.items()}
    sample, _ = found["id-5"]
    assert [one["content"] for one in sample.messages] == ["<|image_1|>\nName it.", "It is title 5."]
    kept = {"id": "id-5", "image": "pictures/5.png", "title": "title 5", "__key__": "id-5"}
    assert sample.source["columns"] == kept
    assert verify([str(tmp_path / "new")]) == 0


def test_a_far_output_needs_a_folder_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--output", "s3://bucket/out"], ["--output", str(tmp_path), "--work", str(tmp_path)]):
        with pytest.raises(SystemExit):
            build(["--preset", "burberry", "--source", "x.csv", *arguments])
        assert "--work names a folder here" in capsys.readouterr().err
