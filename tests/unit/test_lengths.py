"""Lengths are known before anything is decoded, and are those of what is read."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.index import Index
from data.schema import UserError
from tests.factories.small_shards import SmallShards, damage, small_shards, write_tokenizer
from train.model.crops import tower_crops
from train.pipeline import lengths as lengths_module
from train.pipeline.encode import Encoder, EncoderSettings
from train.pipeline.opening import open_plan
from train.pipeline.plan import Plan
from train.pipeline.read import ShardReader

GEOMETRY = {"num_crops": 4, "crop_size": 56, "tokens_per_side": 2}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> SmallShards:
    return small_shards(tmp_path_factory.mktemp("shards"))


def opened(built: SmallShards, cache: Path | None, **settings: Any) -> Plan:
    values = GEOMETRY | {
        "split": "train",
        "tokenizer_file": built.tokenizer,
        "pack_length": 256,
        "window": 64,
        "over_long": "skip",
        "last_batch": "short",
        "shuffle": True,
        "seed": 0,
        "global_batch_packs": 4,
        "crops_per_chunk": 8,
        "labels_per_chunk": 64,
        "cache": cache,
    }
    return open_plan(built.folder, **(values | settings))


@pytest.mark.parametrize("num_crops", [1, 4, 9])
def test_planned_lengths_are_those_of_the_encoded_samples(built: SmallShards, num_crops: int):
    plan = opened(built, None, num_crops=num_crops)
    reader = ShardReader(plan.corpus)
    settings = {"tokenizer_file": built.tokenizer, "template": plan.spec.template, "max_open": 2}
    encoder = Encoder(EncoderSettings(sets=plan.corpus.sets, **settings, **(GEOMETRY | {"num_crops": num_crops})))
    for number in range(len(plan.corpus)):
        sample = encoder.encode(*reader.read(plan.corpus.entry(number)))
        assert plan.lengths.tokens[number] == len(sample.input_ids)
        assert plan.lengths.labels[number] == np.count_nonzero(sample.labels != -100)
        assert plan.lengths.crops[number] == sum(tower_crops(*grid) for grid in sample.grids.tolist())


def test_text_is_counted_once_and_found_again(built: SmallShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = opened(built, tmp_path)
    monkeypatch.setattr(lengths_module, "_count", lambda *_: pytest.fail("counted again"))
    for geometry in ({}, {"num_crops": 9}):
        again = opened(built, tmp_path, **geometry)
        assert np.array_equal(first.lengths.labels, again.lengths.labels)
    assert np.array_equal(opened(built, tmp_path).lengths.tokens, first.lengths.tokens)


def test_another_tokenizer_is_counted_anew(built: SmallShards, tmp_path: Path):
    opened(built, tmp_path)
    other = write_tokenizer(tmp_path / "other" / "tokenizer.json")
    other.write_text(other.read_text() + "\n")
    opened(built, tmp_path, tokenizer_file=other)
    assert len(list(tmp_path.glob("lengths-*.npz"))) == 2


@pytest.mark.parametrize("content", [b"", b"not a zip", None])
def test_a_damaged_cache_is_counted_anew(built: SmallShards, tmp_path: Path, content: bytes | None):
    first = opened(built, tmp_path)
    (file,) = tmp_path.glob("lengths-*.npz")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if content is None else content)
    assert np.array_equal(opened(built, tmp_path).lengths.tokens, first.lengths.tokens)
    assert file.read_bytes() == whole


def test_a_sample_that_cannot_be_counted_takes_a_token_and_is_not_remembered(tmp_path: Path):
    built = small_shards(tmp_path / "shards")
    whole = opened(built, None)
    entry = Index.open(built.folder / "train" / "index.arrow").entry(7)
    damage(built.folder, "train", entry.shard, entry.members[0].offset)
    plan = opened(built, tmp_path / "cache")
    assert plan.lengths.labels[7] == 0
    others = np.arange(len(plan.corpus)) != 7
    assert np.array_equal(plan.lengths.tokens[others], whole.lengths.tokens[others])
    assert not list(tmp_path.glob("cache/*"))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: (folder / "train" / "shard-000001.tar").unlink(), "shard-000001.tar is missing"),
        (lambda folder: (folder / "train" / "shard-000001.tar").write_bytes(b"short"), "5 bytes, the manifest says"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json: No such file"),
        (lambda folder: (folder / "manifest.json").unlink(), "has no manifest.json"),
    ],
)
def test_what_is_missing_is_named_at_the_start(tmp_path: Path, break_it: Any, message: str):
    built = small_shards(tmp_path / "shards", per_shard=3)
    break_it(built.folder)
    with pytest.raises(UserError, match=message):
        opened(built, None)


def test_another_split_is_refused_with_those_there_are(built: SmallShards):
    with pytest.raises(UserError, match="no split 'test', only train"):
        opened(built, None, split="test")
