"""Lengths are known before anything is decoded, and are those of what is read."""

import dataclasses
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.conversation import Conversation
from data.index import Index
from data.manifest import Manifest
from data.schema import UserError
from tests.factories.plans import small
from tests.factories.small_shards import SmallShards, damage, small_shards, write_tokenizer
from train.model.crops import tower_crops
from train.pipeline import lengths as lengths_module
from train.pipeline.corpus import ShardSet
from train.pipeline.encode import Encoder, EncoderSettings
from train.pipeline.opening import Folder, open_again, open_plan, record_of
from train.pipeline.plan import Plan
from train.pipeline.read import ShardReader
from train.pipeline.sharing import Ranks
from train.pipeline.spec import PlanError

GEOMETRY = {"num_crops": 4, "crop_size": 56, "tokens_per_side": 2}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> SmallShards:
    return small_shards(tmp_path_factory.mktemp("shards"))


def opened(
    built: SmallShards,
    cache: Path | None,
    *,
    shards: Path | Sequence[Folder] | None = None,
    split: str = "train",
    tokenizer_file: Path | None = None,
    ranks: Ranks | None = None,
    **changes: Any,
) -> Plan:
    settings = small(**({"global_batch_packs": 4} | changes))
    tokenizer = tokenizer_file or built.tokenizer
    return open_plan(shards or built.folder, split, settings, tokenizer_file=tokenizer, cache=cache, ranks=ranks)


@pytest.mark.parametrize("num_crops", [1, 4, 9])
def test_planned_lengths_are_those_of_the_encoded_samples(built: SmallShards, num_crops: int):
    plan = opened(built, None, num_crops=num_crops)
    reader = ShardReader(plan.corpus)
    settings = {"tokenizer_file": built.tokenizer, "template": plan.spec.template, "max_open": 2}
    encoder = Encoder(EncoderSettings(sets=plan.corpus.sets, **settings, **(GEOMETRY | {"num_crops": num_crops})))
    for number in range(len(plan.corpus)):
        entry = plan.corpus.entry(number)
        sample, pictures = reader.read(entry)
        grids = encoder.grids_of(entry, num_crops)
        ids, labels = encoder.words(sample, grids)
        assert plan.lengths.tokens[number] == len(ids)
        assert plan.lengths.labels[number] == np.count_nonzero(labels != -100)
        assert plan.lengths.crops[number] == sum(tower_crops(*grid) for grid in grids)
        crops = sum(rows * columns for rows, columns in grids)
        encoder.pixels(pictures, grids, num_crops, np.empty((crops, 3, 56, 56), np.uint8))  # raises for other crops


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
    assert len(list(tmp_path.glob("text-*.npy"))) == 2


@pytest.mark.parametrize("name", ["text", "lengths"])
@pytest.mark.parametrize("content", [b"", b"no numbers", None])
def test_a_damaged_cache_is_counted_anew(built: SmallShards, tmp_path: Path, name: str, content: bytes | None):
    first = opened(built, tmp_path)
    (file,) = tmp_path.glob(f"{name}-*.npy")
    whole = file.read_bytes()
    for kept in tmp_path.glob("*.npy"):
        kept.unlink()
    file.write_bytes(whole[: len(whole) // 2] if content is None else content)
    assert np.array_equal(opened(built, tmp_path).lengths.tokens, first.lengths.tokens)
    assert file.read_bytes() == whole


class ThreadRanks:
    """Ranks of one process that wait for one another."""

    def __init__(self, rank: int, boxes: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.size = rank, len(boxes)
        self._boxes, self._barrier = boxes, barrier

    def gather_objects(self, value: Any) -> list[Any]:
        self._boxes[self.rank] = value
        self._barrier.wait(20)
        found = list(self._boxes)
        self._barrier.wait(20)
        return found

    def agree(self, work: Callable[[], Any]) -> Any:
        result = work()
        self._barrier.wait(20)
        return result


@pytest.mark.parametrize("size", [2, 3, 7])
def test_ranks_count_a_share_each_and_all_get_the_whole(built: SmallShards, tmp_path: Path, size: int):
    alone = opened(built, None)
    counted: list[tuple[int, int]] = []
    count = lengths_module._count

    def watched(one: ShardSet, index: Index, start: int, stop: int, conversation: Conversation) -> np.ndarray:
        counted.append((start, stop))
        return count(one, index, start, stop, conversation)

    boxes, barrier = [None] * size, threading.Barrier(size)
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(size) as pool:
        patch.setattr(lengths_module, "_count", watched)
        started = [
            pool.submit(opened, built, tmp_path, ranks=ThreadRanks(rank, boxes, barrier)) for rank in range(size)
        ]
        plans = [one.result() for one in started]
    assert sorted(counted) == [(60 * rank // size, 60 * (rank + 1) // size) for rank in range(size)]
    for plan in plans:
        assert np.array_equal(plan.lengths.tokens, alone.lengths.tokens)
        assert [plan.digest(step) for step in range(3)] == [alone.digest(step) for step in range(3)]


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


def test_shards_appended_do_not_matter_to_a_plan_that_is_pinned_and_changed_ones_are_refused(tmp_path: Path):
    small_shards(tmp_path / "now", shards=2)
    before = opened(SmallShards(folder=tmp_path / "now", tokenizer=tmp_path / "now/tokenizer.json", samples={}), None)
    record = record_of(before, tmp_path / "now/tokenizer.json", None)
    now = small_shards(tmp_path / "now", shards=3)
    again = open_again(record, tmp_path / "plan.json")
    assert again.spec == before.spec
    assert [again.digest(step) for step in range(20)] == [before.digest(step) for step in range(20)]
    assert len(opened(now, None).corpus) == 60
    small_shards(tmp_path / "now", shards=3, seed=1)
    with pytest.raises(PlanError, match=r"shard-000000.tar: this run is pinned to 2 shards.*was changed.*bring the"):
        open_again(record, tmp_path / "plan.json")
    small_shards(tmp_path / "now", shards=1)
    with pytest.raises(PlanError, match=r"shard-00000\d.tar: this run is pinned to 2 shards"):
        open_again(record, tmp_path / "plan.json")


def test_several_folders_are_one_corpus_and_must_share_a_template(built: SmallShards, tmp_path: Path):
    other = small_shards(tmp_path / "other", seed=5, shards=2, per_shard=7)
    folders = [Folder(path=built.folder), Folder(path=other.folder)]
    plan = opened(built, None, shards=folders)
    keys = [sample.key for folder in (built, other) for sample in folder.samples["train"]]
    assert [plan.key(number) for number in range(74)] == keys
    reader = ShardReader(plan.corpus)
    assert [reader.read(plan.corpus.entry(number))[0] for number in (0, 59, 60, 73)] == [
        *(built.samples["train"][number] for number in (0, 59)),
        *(other.samples["train"][number] for number in (0, 13)),
    ]
    alone = opened(other, None)
    assert plan.lengths.tokens[60:].tolist() == alone.lengths.tokens.tolist()
    manifest = Manifest.load(other.folder)
    dataclasses.replace(manifest, chat_template={"name": "phi3v", "template": "x"}).save(other.folder)
    with pytest.raises(PlanError, match="different chat templates"):
        opened(built, None, shards=folders)


def test_pictures_of_a_sample_too_long_are_cut_into_as_many_crops_as_fit(built: SmallShards):
    whole, limit = opened(built, None, num_crops=9), 80
    plan = opened(built, None, num_crops=9, over_long="fewer_crops", pack_length=limit)
    long = whole.lengths.tokens > limit
    assert np.array_equal(plan.lengths.num_crops < 9, long)
    assert plan.lengths.tokens[~long].tolist() == whole.lengths.tokens[~long].tolist()
    for number in np.flatnonzero(long & (plan.lengths.tokens <= limit)):
        crops = int(plan.lengths.num_crops[number])
        assert plan.lengths.tokens[number] == opened(built, None, num_crops=crops).lengths.tokens[number]
        assert opened(built, None, num_crops=crops + 1).lengths.tokens[number] > limit
    assert plan.figures().cut_down == np.count_nonzero(long & (plan.lengths.tokens <= limit)) > 0
    assert plan.lengths.num_crops[plan.over_long].tolist() == [1] * len(plan.over_long)
