"""The record of what the data did to a run."""

import json
from pathlib import Path
from typing import Any

import pytest

from train.data_record import BAD_SAMPLES, EVENTS, BadDataError, DataRecord
from train.distributed import Place, World
from train.pipeline.batch import BadSample
from train.pipeline.events import Event


def bad(key: str) -> BadSample:
    return BadSample(key=key, shard="shard-000001.tar", byte=512, reason="truncated")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


ALONE = World(place=Place(rank=0, local_rank=0, world_size=1, local_world_size=1), device=None, group=None)  # type: ignore[arg-type]


def record_of(folder: Path, step: int = 0, max_bad: int = 9) -> DataRecord:
    return DataRecord(folder, ALONE, max_bad=max_bad, step=step)


def test_each_sample_is_named_by_shard_key_and_byte_in_the_order_of_packs(tmp_path: Path):
    record = record_of(tmp_path)
    record.add(7, "train", [(3, bad("b")), (0, bad("a"))], [Event(event="worker", where="here", what="died")])
    assert lines(tmp_path / BAD_SAMPLES) == [
        {"step": 7, "kind": "train", "pack": pack, "key": key}
        | {"shard": "shard-000001.tar", "byte": 512, "reason": "truncated"}
        for pack, key in ((0, "a"), (3, "b"))
    ]
    (event,) = lines(tmp_path / EVENTS)
    assert (event["step"], event["event"], event["where"], event["what"], event["rank"]) == (
        7,
        "worker",
        "here",
        "died",
        0,
    )


def test_after_a_resume_nothing_stands_twice(tmp_path: Path):
    record = record_of(tmp_path)
    for step, key in ((1, "a"), (2, "b"), (3, "c")):
        record.add(step, "train", [(0, bad(key))], [])
    with (tmp_path / BAD_SAMPLES).open("a") as stream:
        stream.write('{"step": 4, "ki')
    again = record_of(tmp_path, step=2)
    again.add(3, "train", [(0, bad("c"))], [])
    assert [(line["step"], line["key"]) for line in lines(tmp_path / BAD_SAMPLES)] == [(1, "a"), (2, "b"), (3, "c")]


def test_more_bad_samples_than_allowed_end_the_run_those_before_a_resume_included(tmp_path: Path):
    record = record_of(tmp_path, max_bad=2)
    record.add(1, "train", [(0, bad("a")), (0, bad("b"))], [])
    record.add(2, "train", [(0, bad("a"))], [])
    again = record_of(tmp_path, step=2, max_bad=2)
    with pytest.raises(BadDataError, match=r"3 samples could not be used, data.max_bad allows 2, the latest 'c'"):
        again.add(3, "train", [(0, bad("c"))], [])
    assert len(lines(tmp_path / BAD_SAMPLES)) == 4
