"""Shards that are elsewhere: through the cache or by ranges, failures sat out."""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.schema import UserError
from tests.factories.plans import SMALL
from tests.factories.served import Served, served
from tests.factories.small_shards import SmallShards, damage, small_shards
from train.pipeline.corpus import Corpus
from train.pipeline.loader import Loader
from train.pipeline.opening import open_plan
from train.pipeline.patience import ReadError
from train.pipeline.plan import Plan
from train.pipeline.prefetch import STEPS_AHEAD, Prefetch, whole_costs_less
from train.pipeline.read import ShardReader
from train.pipeline.remote import mirror
from train.pipeline.storage import Storage


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> SmallShards:
    return small_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture
def site(built: SmallShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """The shards, served; and counted once, so that nothing but samples is asked for."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    shutil.copytree(built.folder, tmp_path / "origin")
    with served(tmp_path / "origin") as site:
        yield site


def storage_of(tmp_path: Path, **settings: Any) -> Storage:
    values = {"cache": str(tmp_path / "cache"), "patience_s": 20.0, "first_pause_s": 0.05} | settings
    return Storage(**values)


def plan_of(built: SmallShards, folder: Path) -> Plan:
    return open_plan(folder, "train", SMALL, tokenizer_file=built.tokenizer, cache=built.folder / "counted")


def loader_of(built: SmallShards, folder: Path, **settings: Any) -> Loader:
    plan = plan_of(built, folder)
    values = {"rank": 0, "world": 1, "start_step": 0, "end_step": plan.steps_until(2), "workers": 0} | settings
    return Loader(plan, built.tokenizer, **values)


def reader_of(built: SmallShards, folder: Path, storage: Storage) -> tuple[ShardReader, Corpus]:
    corpus = plan_of(built, folder).corpus
    return ShardReader(corpus, storage=storage), corpus


def same(stream: Loader, expected: Loader) -> bool:
    with stream, expected:
        return all(
            np.array_equal(array, getattr(other, name))
            for (_, batches), (_, others) in zip(stream, expected, strict=True)
            for batch, other in zip(batches, others, strict=True)
            for name, array in batch.arrays().items()
        )


def test_text_of_shards_elsewhere_is_counted_where_the_index_has_no_counts(
    built: SmallShards, site: Served, tmp_path: Path
):
    folder = mirror(site.url, tmp_path / "cache", 5.0)
    site.refusing = 2
    plan = open_plan(folder, "train", SMALL, tokenizer_file=built.tokenizer, cache=tmp_path / "counted")
    assert site.refused == 2
    assert np.array_equal(plan.lengths.tokens, plan_of(built, built.folder).lengths.tokens)


def test_samples_of_a_shard_that_went_missing_elsewhere_count_as_one_token_and_are_not_kept(
    built: SmallShards, site: Served, tmp_path: Path
):
    folder = mirror(site.url, tmp_path / "cache", 5.0)
    (tmp_path / "origin/train/shard-000001.tar").unlink()
    plan = open_plan(folder, "train", SMALL, tokenizer_file=built.tokenizer, cache=tmp_path / "counted")
    gone = plan.corpus.indexes[0].shard == 1
    assert (plan.lengths.labels[gone] == 0).all()
    assert (plan.lengths.labels[~gone] > 0).all()
    assert not list((tmp_path / "counted").glob("*.npy"))


def test_whole_shards_are_fetched_once_for_all_epochs(built: SmallShards, site: Served, tmp_path: Path):
    plan_of(built, built.folder)
    storage = storage_of(tmp_path)
    folder = mirror(site.url, Path(storage.cache or ""), 5.0)
    assert same(loader_of(built, folder, storage=storage, workers=1), loader_of(built, built.folder))
    kept = list(Path(storage.cache or "").glob("*.tar"))
    assert len(kept) == 3
    site.requests.clear()
    assert same(loader_of(built, folder, storage=storage), loader_of(built, built.folder))
    assert site.requests == [], "the second run found all in the cache"


def test_without_room_for_whole_shards_samples_come_by_ranges(built: SmallShards, site: Served, tmp_path: Path):
    plan_of(built, built.folder)
    storage = storage_of(tmp_path, cache_bytes=1000)
    folder = mirror(site.url, Path(storage.cache or ""), 5.0)
    site.requests.clear()
    assert same(loader_of(built, folder, storage=storage), loader_of(built, built.folder))
    assert len(site.requests) == 120
    assert all(asked for _, asked in site.requests)
    assert not list(Path(storage.cache or "").glob("*.tar"))


def test_the_mirror_follows_its_origin(built: SmallShards, site: Served, tmp_path: Path):
    folder = mirror(site.url, tmp_path / "cache", 5.0)
    site.requests.clear()
    assert mirror(site.url, tmp_path / "cache", 5.0) == folder
    assert [path for path, _ in site.requests] == ["manifest.json"]
    manifest = site.folder / "manifest.json"
    manifest.write_bytes(manifest.read_bytes() + b" ")
    mirror(site.url, tmp_path / "cache", 5.0)
    assert (folder / "manifest.json").read_bytes() == manifest.read_bytes()
    with pytest.raises(UserError, match=r"no shards at .*/nowhere"):
        mirror(f"{site.url}/nowhere", tmp_path / "cache", 5.0)
    with pytest.raises(UserError, match="cannot be read here"):
        mirror("nosuch://bucket", tmp_path / "cache", 5.0)


def test_an_outage_is_sat_out_and_told(built: SmallShards, site: Served, tmp_path: Path):
    plan_of(built, built.folder)
    storage = storage_of(tmp_path, cache_bytes=0)
    folder = mirror(site.url, Path(storage.cache or ""), 5.0)
    with loader_of(built, folder, storage=storage) as stream:
        site.fail_for(1.5)
        next(stream)
        report = stream.latest
        list(stream)
    assert site.refused
    assert report.waited_s > 1
    assert report.seconds["remote"] > 1
    assert {event.event for event in report.events} == {"remote"}
    assert "503" in report.events[0].what
    assert "answered at try" in report.events[0].what


def test_an_outage_beyond_patience_ends_the_reading(built: SmallShards, site: Served, tmp_path: Path):
    plan_of(built, built.folder)
    storage = storage_of(tmp_path, cache_bytes=0, patience_s=0.3)
    folder = mirror(site.url, Path(storage.cache or ""), 5.0)
    reader, corpus = reader_of(built, folder, storage)
    site.fail_for(60)
    begun = time.monotonic()
    with pytest.raises(ReadError, match=r"shard-000000\.tar: 503 .* times in .*patience_minutes"):
        reader.read(corpus.entry(3))
    assert time.monotonic() - begun < 50
    site.fail_for(60, status=403)
    with pytest.raises(ReadError, match="403"):
        reader.read(corpus.entry(3))


def test_a_shard_that_is_gone_from_its_origin_costs_its_samples(built: SmallShards, site: Served, tmp_path: Path):
    plan_of(built, built.folder)
    storage = storage_of(tmp_path)
    folder = mirror(site.url, Path(storage.cache or ""), 5.0)
    (site.folder / "train" / "shard-000001.tar").unlink()
    with loader_of(built, folder, storage=storage, end_step=plan_of(built, built.folder).steps_in(0)) as stream:
        bad = [one for _, batches in stream for batch in batches for one in batch.bad]
    assert {one.key for one in bad} == {f"train-1-{place}" for place in range(20)}


def test_damage_in_the_cache_is_mended_from_the_origin(built: SmallShards, site: Served, tmp_path: Path):
    plan_of(built, built.folder)
    storage = storage_of(tmp_path)
    folder = mirror(site.url, Path(storage.cache or ""), 5.0)
    assert same(loader_of(built, folder, storage=storage), loader_of(built, built.folder))
    reader, corpus = reader_of(built, folder, storage)
    whole = reader.read(corpus.entry(7))
    first, second, third = sorted(
        Path(storage.cache or "").glob("*.tar"), key=lambda path: (path.stat().st_size, path.name)
    )
    content = bytearray(first.read_bytes())
    content[:] = b"\0" * len(content)
    first.write_bytes(content)
    os.truncate(second, 100)
    third.unlink()
    with loader_of(built, folder, storage=storage) as stream:
        events, bad = [], []
        for _, batches in stream:
            events += stream.latest.events
            bad += [one for batch in batches for one in batch.bad]
    assert bad == []
    assert {event.where for event in events} == {str(first), str(second)}
    assert reader.read(corpus.entry(7)) == whole


def test_damage_at_the_origin_is_a_bad_sample(built: SmallShards, site: Served, tmp_path: Path):
    plan_of(built, built.folder)
    storage = storage_of(tmp_path)
    folder = mirror(site.url, Path(storage.cache or ""), 5.0)
    entry = plan_of(built, folder).corpus.entry(4)
    damage(site.folder, "train", entry.shard, entry.offset + 700)
    with loader_of(built, folder, storage=storage, end_step=plan_of(built, built.folder).steps_in(0)) as stream:
        bad = [one for _, batches in stream for batch in batches for one in batch.bad]
    assert [(one.key, one.byte) for one in bad] == [(entry.key, entry.offset)]
    kept = {path: path.stat().st_ino for path in Path(storage.cache or "").glob("*.tar")}
    with loader_of(built, folder, storage=storage, end_step=plan_of(built, built.folder).steps_in(0)) as stream:
        events = [event for _ in stream for event in stream.latest.events]
    assert events == []
    assert kept == {path: path.stat().st_ino for path in Path(storage.cache or "").glob("*.tar")}, "fetched for nothing"


SHARD = {"samples": 2_000, "size": 300_000_000, "shards": 100, "open_shards": 64}


@pytest.mark.parametrize(
    ("given", "whole"),
    [
        ({"node_share": 1.0, "epochs": 3.0, "cache_bytes": 10**12}, True),
        ({"node_share": 1.0, "epochs": 3.0, "cache_bytes": 3 * 10**10}, True),
        ({"node_share": 1.0, "epochs": 3.0, "cache_bytes": 2 * 10**10}, False),
        ({"node_share": 1 / 16, "epochs": 0.5, "cache_bytes": 10**12}, False),
        ({"node_share": 1 / 16, "epochs": 8.0, "cache_bytes": 10**12}, True),
        ({"node_share": 1.0, "epochs": 0.01, "cache_bytes": 10**12}, False),
    ],
)
def test_whole_shards_where_they_fit_and_most_of_them_is_read(given: dict[str, float], whole: bool):
    assert whole_costs_less(**SHARD, **given) is whole  # type: ignore[arg-type]


def test_the_plan_of_a_long_run_is_not_walked_to_its_end_for_a_few_shards(
    built: SmallShards, site: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plan_of(built, built.folder)
    storage = storage_of(tmp_path)
    plan = plan_of(built, mirror(site.url, Path(storage.cache or ""), 5.0))
    looked: list[int] = []
    batch = plan.batch
    monkeypatch.setattr(plan, "batch", lambda step: looked.append(step) or batch(step))
    prefetch = Prefetch(plan, start_step=0, end_step=10**9, storage=storage)
    assert sorted(prefetch.due(0)) == [0, 1, 2]
    assert len(looked) <= STEPS_AHEAD
    assert prefetch.due(1) == []
