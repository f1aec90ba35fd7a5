"""Uploads: whole files in their order, nothing sent twice, no manifest while anything differs."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from data.publish import publish
from data.shards import iter_samples
from tests.factories.small_shards import small_shards

OUT = "memory://bucket/out"


@pytest.fixture
def far() -> Iterator[Any]:
    system = fsspec.filesystem("memory")
    yield system
    if system.exists("/bucket"):
        system.rm("/bucket", recursive=True)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = small_shards(tmp_path / "work").folder
    (folder / "rejected.jsonl").write_text("")
    return folder


def upload(work: Path) -> int:
    return publish(work, OUT, lambda more, **_: None)


def test_all_is_sent_once_and_the_manifest_last(work: Path, far: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    put = type(far).put_file

    def noted(self: Any, source: str, target: str, **options: Any) -> None:
        sent.append(target.partition("/out/")[2])
        put(self, source, target, **options)

    monkeypatch.setattr(type(far), "put_file", noted)
    count = upload(work)
    assert count == len(sent) == len(set(sent))
    assert sent[-1] == "manifest.json"
    shards = [place for place, name in enumerate(sent) if name.endswith(".tar")]
    assert max(shards) < min(place for place, name in enumerate(sent) if name.endswith(".arrow"))
    assert upload(work) == 0
    far.get("/bucket/out", str(work.parent / "back"), recursive=True)
    split = next(iter(json.loads((work / "manifest.json").read_text())["shards"]))
    assert list(iter_samples(work.parent / "back", split)) == list(iter_samples(work, split))


def test_while_anything_differs_there_is_no_manifest(work: Path, far: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    upload(work)
    shard = next(work.glob("*/shard-*.tar"))
    name = f"/bucket/out/{shard.relative_to(work)}"
    far.pipe_file(name, b"cut")
    far.pipe_file("/bucket/out/train/shard-000999.tar", b"of an earlier build")

    def killed(self: Any, source: str, target: str, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(type(far), "put_file", killed)
        with pytest.raises(KeyboardInterrupt):
            upload(work)
    assert not far.exists("/bucket/out/manifest.json")
    assert upload(work) == 2
    assert far.cat_file(name) == shard.read_bytes()
    assert far.exists("/bucket/out/manifest.json")
    assert not far.exists("/bucket/out/train/shard-000999.tar")
