"""Range reads by the index."""

import os
from contextlib import suppress
from pathlib import Path

import pytest

from data.index import Index, IndexEntry
from data.shards import ShardError, iter_samples
from tests.factories.small_shards import SmallShards, damage, small_shards
from train.pipeline.corpus import Corpus
from train.pipeline.read import ShardReader


@pytest.fixture
def built(tmp_path: Path) -> SmallShards:
    return small_shards(tmp_path, per_shard=5)


def reader_of(built: SmallShards, max_open: int = 64) -> ShardReader:
    return ShardReader(Corpus.open([built.shard_set()]), max_open)


def entry_of(built: SmallShards, number: int) -> IndexEntry:
    return Index.open(built.folder / "train" / "index.arrow").entry(number)


def test_a_sample_is_read_as_it_was_written(built: SmallShards):
    reader = reader_of(built)
    expected = list(iter_samples(built.folder, "train"))
    for number in (14, 0, 7, 7, 3):
        assert reader.read(entry_of(built, number)) == expected[number]


def open_shards() -> int:
    """Shards that this process holds open; what other threads open meanwhile does not count."""
    opened = []
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # closed meanwhile, as the one that lists them
            opened.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    return sum(path.endswith(".tar") for path in opened)


def test_no_more_shards_are_open_than_allowed(built: SmallShards):
    reader = reader_of(built, max_open=2)
    before = open_shards()
    for number in range(15):
        reader.read(entry_of(built, number))
    assert open_shards() == before + 2
    reader.close()
    assert open_shards() == before


def test_a_changed_byte_is_named_by_shard_and_key(built: SmallShards):
    reader = reader_of(built)
    entry = Index.open(built.folder / "train" / "index.arrow").entry(6)
    damage(built.folder, "train", entry.shard, entry.offset + entry.length - 1)
    with pytest.raises(ShardError, match=r"shard-000001\.tar: sample 'train-1-1'"):
        reader.read(entry_of(built, 6))
    assert reader.read(entry_of(built, 7))[0].key == "train-1-2"


def test_a_shard_cut_short_is_damage_of_its_last_samples(built: SmallShards):
    reader = reader_of(built)
    entry = Index.open(built.folder / "train" / "index.arrow").entry(9)
    path = built.folder / "train" / "shard-000001.tar"
    os.truncate(path, entry.offset + 600)
    assert reader.read(entry_of(built, 8))[0].key == "train-1-3"
    with pytest.raises(ShardError, match="ends after 600 of"):
        reader.read(entry_of(built, 9))


def test_samples_of_a_shard_that_is_gone_are_lost_and_those_of_others_are_not(built: SmallShards):
    reader = reader_of(built)
    (built.folder / "train" / "shard-000002.tar").unlink()
    with pytest.raises(ShardError, match=r"shard-000002\.tar: sample 'train-2-2' .*the shard is gone"):
        reader.read(entry_of(built, 12))
    assert reader.read(entry_of(built, 7))[0].key == "train-1-2"
