"""Answers while training: the same on any number of ranks, those of the checkpoint, and training is as without them."""

import json
from pathlib import Path

import pytest

from tests.distributed.conftest import Bench, numbers
from train.loading import load_run
from train.predict import predict_split
from train.score.fields import read_predictions
from train.score.split import Split

ASKED, TOKENS = 5, 12
SHORT = ("stop.steps=12", "checkpoint.every_steps=6", "data.workers=0", "evaluate.every_steps=6")
ANSWERS = (f"evaluate.answers={ASKED}", f"evaluate.answer_tokens={TOKENS}", "evaluate.answer_batch=2")


@pytest.fixture(scope="module")
def partitioned(bench: Bench) -> str:
    """ZeRO-3 that keeps no parameter whole, prefetches and reuses."""
    file = bench.folder / "partitioned.json"
    zero = json.loads(Path("ds_configs/zero3.json").read_text())
    zero["zero_optimization"] |= {"stage3_param_persistence_threshold": 0, "stage3_max_reuse_distance": 1000}
    file.write_text(json.dumps(zero))
    return f"deepspeed={file}"


@pytest.mark.soak  # on one rank also in test_faults
def test_answers_change_nothing_of_the_training_and_are_those_of_its_checkpoint(bench: Bench, partitioned: str) -> None:
    for name, more in (("unasked", ()), ("asked", ANSWERS)):
        ended = bench.train(2, name, partitioned, *SHORT, *more)
        assert ended.returncode == 0, ended.stdout
    assert [numbers(line) for line in bench.lines("asked")] == [numbers(line) for line in bench.lines("unasked")]
    last = "checkpoints/step-000012"
    for file in (bench.runs / "unasked" / last).glob("*.safetensors"):
        assert file.read_bytes() == (bench.runs / "asked" / last / file.name).read_bytes()
    measured = bench.lines("asked", "validation")
    assert [line["step"] for line in measured] == [6, 12]
    losses = [line["loss"] for line in measured]
    assert losses == [line["loss"] for line in bench.lines("unasked", "validation")]
    assert f"{ASKED} answers, " in ended.stdout
    loaded = load_run(bench.runs / "asked", "newest")
    split = Split(bench.folder / "shards", "validation")
    expected = predict_split(loaded, split, batch_size=2, max_new_tokens=TOKENS, limit=ASKED)
    said = read_predictions(bench.runs / "asked" / "answers" / "step-000012.jsonl")
    assert [(one.key, one.answer, one.fields) for one in said] == [
        (one.key, one.answer, one.fields) for one in expected
    ]
    assert [one.logprob for one in said] == pytest.approx([one.logprob for one in expected], abs=1e-3)
    answers = measured[-1]["answers"]
    assert answers["samples"] == ASKED
    truths = list(split.truths(range(ASKED)))
    right = [truth.values["category"] == one.fields["category"] for truth, one in zip(truths, said, strict=True)]
    assert answers["category/accuracy"] == pytest.approx(sum(right) / ASKED)
    assert answers["unreadable"] == sum(one.fields["category"] is None for one in said)


@pytest.mark.soak
def test_one_rank_gives_the_answers_of_two(bench: Bench, partitioned: str) -> None:
    if not (bench.runs / "asked").is_dir():
        bench.train(2, "asked", partitioned, *SHORT, *ANSWERS)
    ended = bench.train(1, "asked-alone", *SHORT, *ANSWERS, "deepspeed=ds_configs/zero2.json")
    assert ended.returncode == 0, ended.stdout
    files = [bench.runs / name / "answers" / "step-000006.jsonl" for name in ("asked", "asked-alone")]
    assert [one.answer for one in read_predictions(files[0])] == [one.answer for one in read_predictions(files[1])]


@pytest.mark.soak
def test_a_model_with_adapters_answers_as_its_checkpoint_does(bench: Bench, partitioned: str) -> None:
    ended = bench.train(2, "asked-lora", partitioned, *SHORT, *ANSWERS, "tune.method=lora", "tune.lora.rank=4")
    assert ended.returncode == 0, ended.stdout
    loaded = load_run(bench.runs / "asked-lora", "newest")
    split = Split(bench.folder / "shards", "validation")
    expected = predict_split(loaded, split, batch_size=2, max_new_tokens=TOKENS, limit=ASKED)
    said = read_predictions(bench.runs / "asked-lora" / "answers" / "step-000012.jsonl")
    assert [one.answer for one in said] == [one.answer for one in expected]


def test_answers_without_a_split_to_ask_about_are_refused(bench: Bench) -> None:
    ended = bench.train(1, "asked-nothing", *SHORT, *ANSWERS, "data.validation=none")
    assert ended.returncode == 2
    assert "evaluate.answers: the shards have no split 'none'" in ended.stdout
