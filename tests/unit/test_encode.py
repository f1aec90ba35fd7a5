"""From a sample to a pack's arrays."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from data.geometry import image_tokens
from data.index import Index
from data.schema import Sample
from tests.factories.small_shards import SmallShards, damage, small_shards
from train.pipeline.batch import Batch, Encoded, assemble
from train.pipeline.encode import EncoderSettings, Job, LengthMismatch, PackMaker

CHUNKS = {"crops": np.zeros((0, 3, 56, 56), np.uint8), "crop_chunks": 2, "label_chunks": 1, "number": 3}


@pytest.fixture
def built(tmp_path: Path) -> SmallShards:
    return small_shards(tmp_path, per_shard=10)


def maker_of(built: SmallShards) -> PackMaker:
    return PackMaker(
        EncoderSettings(
            sets=(built.shard_set(),),
            tokenizer_file=built.tokenizer,
            template="{% for m in messages %}{{'<|' + m['role'] + '|>\\n' + m['content'] + '<|end|>'}}{% endfor %}",
            num_crops=4,
            crop_size=56,
            tokens_per_side=2,
            max_open=4,
        )
    )


def lengths_of(maker: PackMaker, built: SmallShards, samples: tuple[int, ...]) -> tuple[int, ...]:
    encoder = maker._encoder
    entries = [maker._corpus.entry(number) for number in samples]
    return tuple(len(encoder.words(maker._reader.read(one)[0], encoder.grids_of(one, 4))[0]) for one in entries)


def job(samples: tuple[int, ...], tokens: tuple[int, ...]) -> Job:
    return Job(
        step=0, number=3, samples=samples, tokens=tokens, num_crops=(4,) * len(samples), crop_chunks=2, label_chunks=1
    )


def made(built: SmallShards, samples: tuple[int, ...]) -> Batch:
    maker = maker_of(built)
    return maker.make(job(samples, lengths_of(maker, built, samples))).batch


def test_segments_stand_apart_and_none_is_asked_for_the_next_ones_first_token(built: SmallShards):
    batch = made(built, (4, 17, 0, 29))
    ends = batch.cu_seqlens
    assert ends.dtype == np.int32
    assert (ends[0], ends[-1], len(ends)) == (0, len(batch.input_ids), 5)
    assert batch.keys == tuple(built.samples["train"][number].key for number in (4, 17, 0, 29))
    for start, end in pairwise(ends):
        assert batch.labels[start] == -100
        assert batch.input_ids[start] == 1
        assert batch.position_ids[start:end].tolist() == list(range(end - start))
        supervised = batch.labels[start:end] != -100
        assert supervised.any()
        assert np.array_equal(batch.labels[start:end][supervised], batch.input_ids[start:end][supervised])


def test_the_answer_and_its_end_alone_are_supervised(built: SmallShards):
    batch = made(built, (2,))
    supervised = batch.labels[batch.labels >= 0]
    answer = built.samples["train"][2].messages[1]["content"]
    assert len(supervised) >= len(answer)
    end = 3 + 256 + 67 + 3  # <|end|> in the factory's vocabulary
    assert supervised[-1] == batch.input_ids[-1] == end


def test_every_picture_has_its_run_and_its_crops(built: SmallShards):
    batch = made(built, tuple(range(10)))
    place = 0
    for start, end, sample in zip(batch.cu_seqlens, batch.cu_seqlens[1:], built.samples["train"], strict=False):
        ids = batch.input_ids[start:end]
        for number in range(1, len(sample.images) + 1):
            rows, columns = batch.grids[place].tolist()
            assert np.count_nonzero(ids == -number) == image_tokens(rows, columns, 2)
            place += 1
        assert ids.min() >= -len(sample.images)
    assert place == len(batch.grids)
    assert batch.crops.shape == (int(batch.grids.prod(axis=1).sum()), 3, 56, 56)
    assert batch.crops.dtype == np.uint8


def test_a_damaged_sample_is_left_out_and_named_and_nothing_takes_its_place(built: SmallShards):
    entry = Index.open(built.folder / "train" / "index.arrow").entry(17)
    whole = made(built, (4, 0))
    maker = maker_of(built)
    tokens = lengths_of(maker, built, (4, 17, 0))
    damage(built.folder, "train", entry.shard, entry.offset + entry.length - 600)
    batch = maker.make(job((4, 17, 0), tokens)).batch
    assert batch.keys == whole.keys
    for name, array in whole.arrays().items():
        assert np.array_equal(array, getattr(batch, name))
    (bad,) = batch.bad
    assert (bad.key, bad.shard, bad.byte) == ("train-1-7", "shard-000001.tar", entry.offset)
    assert "hash" in bad.reason


def test_a_pack_of_damaged_samples_alone_is_an_empty_one(built: SmallShards):
    entry = Index.open(built.folder / "train" / "index.arrow").entry(4)
    damage(built.folder, "train", 0, entry.offset)
    batch = maker_of(built).make(job((4,), (99,))).batch
    assert (batch.keys, len(batch.bad), batch.labels.tolist()) == ((), 1, [-100])


def test_a_picture_named_twice_is_a_bad_sample(built: SmallShards, monkeypatch: pytest.MonkeyPatch):
    maker = maker_of(built)
    number = next(i for i, sample in enumerate(built.samples["train"]) if len(sample.images) == 1)
    sample, pictures = maker._reader.read(maker._corpus.entry(number))
    twice = Sample(
        key=sample.key,
        messages=({"role": "user", "content": "<|image_1|> <|image_1|>"}, sample.messages[1]),
        images=sample.images,
        target={},
        source={},
    )
    monkeypatch.setattr(maker._reader, "read", lambda _: (twice, pictures))
    assert "more than once" in maker.make(job((number,), (99,))).batch.bad[0].reason


def test_a_length_that_was_not_planned_is_an_error(built: SmallShards):
    with pytest.raises(LengthMismatch, match=r"'train-0-4' has \d+ tokens, planned were 17"):
        maker_of(built).make(job((4,), (17,)))


def test_an_empty_pack_is_one_token_that_nothing_is_learned_from():
    batch = assemble([], **CHUNKS)
    assert (batch.input_ids.tolist(), batch.labels.tolist(), batch.position_ids.tolist()) == ([0], [-100], [0])
    assert (batch.cu_seqlens.tolist(), batch.keys, batch.crops.shape, batch.grids.shape) == (
        [0, 1],
        (),
        (0, 3, 56, 56),
        (0, 2),
    )
    assert (batch.crop_chunks, batch.label_chunks, batch.number) == (2, 1, 3)


def test_text_alone_has_no_crops():
    ids = np.array([1, 5, 6])
    text = Encoded(
        key="a",
        input_ids=ids,
        labels=np.array([-100, 5, 6]),
        crops=np.zeros((0, 3, 56, 56), np.uint8),
        grids=np.zeros((0, 2), np.int64),
    )
    batch = assemble([text, text], **CHUNKS)
    assert batch.input_ids.tolist() == [1, 5, 6, 1, 5, 6]
    assert batch.crops.shape == (0, 3, 56, 56)
