"""The node's cache of shards from elsewhere."""

import errno
import os
import threading
from pathlib import Path

import pytest

from train.pipeline.cache import ShardCache
from train.pipeline.patience import Patience

SIZE = 1_000_000


def cache_of(folder: Path, limit: int = 10 * SIZE) -> tuple[ShardCache, Patience]:
    patience = Patience(1.0)
    return ShardCache(folder, limit, patience), patience


def content(name: str) -> bytes:
    return name.encode()[:1] * SIZE


def fill(cache: ShardCache, name: str) -> bool:
    return cache.fill(name, SIZE, lambda start, end: content(name)[start:end])


def held(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.suffix in (".tar", ".part")}


def test_a_shard_is_fetched_once_and_read_by_all(tmp_path: Path):
    first, second = cache_of(tmp_path / "c")[0], cache_of(tmp_path / "c")[0]
    assert first.open("a.tar", SIZE) is None
    assert fill(first, "a.tar")
    assert second.fill("a.tar", SIZE, lambda start, end: pytest.fail("it is there"))
    descriptor = second.open("a.tar", SIZE)
    assert descriptor is not None
    assert os.pread(descriptor, 2 * SIZE, 0) == content("a.tar")
    os.close(descriptor)


def test_while_one_process_fetches_a_shard_others_do_not(tmp_path: Path):
    cache, other = cache_of(tmp_path)[0], cache_of(tmp_path)[0]
    begun, go_on = threading.Event(), threading.Event()

    def slow(start: int, end: int) -> bytes:
        begun.set()
        go_on.wait(10)
        return content("a.tar")[start:end]

    thread = threading.Thread(target=cache.fill, args=("a.tar", SIZE, slow))
    thread.start()
    begun.wait(10)
    assert not other.fill("a.tar", SIZE, lambda start, end: pytest.fail("another is at it"))
    assert other.open("a.tar", SIZE) is None, "half a shard is none"
    go_on.set()
    thread.join()
    assert other.fill("a.tar", SIZE, lambda start, end: pytest.fail("it is there"))


def test_what_was_not_used_for_longest_goes_first_and_the_bound_holds(tmp_path: Path):
    cache, _ = cache_of(tmp_path, limit=3 * SIZE)
    for place, name in enumerate(("a.tar", "b.tar", "c.tar")):
        fill(cache, name)
        os.utime(tmp_path / name, (place, place))
    reading = cache_of(tmp_path, limit=3 * SIZE)[0].open("a.tar", SIZE)
    assert reading is not None
    fill(cache, "d.tar")
    assert held(tmp_path) == {"a.tar", "c.tar", "d.tar"}
    fill(cache, "e.tar")
    fill(cache, "f.tar")
    fill(cache, "g.tar")
    assert held(tmp_path) == {"e.tar", "f.tar", "g.tar"}
    assert os.pread(reading, SIZE, 0) == content("a.tar"), "who reads it goes on reading"
    os.close(reading)
    assert not cache.fill("h.tar", 4 * SIZE, lambda start, end: pytest.fail("it is larger than the cache"))


def test_a_file_cut_short_is_taken_away_and_said(tmp_path: Path):
    cache, patience = cache_of(tmp_path)
    fill(cache, "a.tar")
    os.truncate(tmp_path / "a.tar", 5)
    assert cache.open("a.tar", SIZE) is None
    (event,) = patience.take_events()
    assert (event.event, event.where) == ("cache", str(tmp_path / "a.tar"))
    assert "has 5 of 1,000,000 bytes" in event.what
    assert fill(cache, "a.tar")


@pytest.mark.parametrize("call", ["posix_fallocate", "open", "replace"])
def test_a_full_disk_costs_the_cache_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str):
    cache, patience = cache_of(tmp_path)
    real = getattr(os, call)

    def full(*arguments: object, **named: object) -> object:
        if any(str(one).endswith(".part") for one in arguments) or call == "posix_fallocate":
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments, **named)

    monkeypatch.setattr(os, call, full)
    assert not fill(cache, "a.tar")
    assert not fill(cache, "b.tar")
    (event,) = patience.take_events()
    assert "No space left on device" in event.what
    assert held(tmp_path) == set()


def test_what_fails_to_come_leaves_nothing_behind(tmp_path: Path):
    cache, _ = cache_of(tmp_path)
    with pytest.raises(RuntimeError):
        cache.fill("a.tar", SIZE, lambda start, end: (_ for _ in ()).throw(RuntimeError("lost")))
    assert not cache.fill("b.tar", SIZE, lambda start, end: b"short"), "a shard that is not as long as said"
    assert held(tmp_path) == set()
    assert fill(cache, "a.tar")
