"""What goes wrong: each a message that says where, what and what to do, a non-zero exit code, and nothing hung."""

import json
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from data.index import Index
from tests.distributed.conftest import Bench, numbers, run
from tests.distributed.test_resume import ranks_of
from tests.factories.small_shards import damage

SECONDS = 120


@pytest.fixture
def broken(bench: Bench, tmp_path: Path) -> Bench:
    """A bench of its own, to break."""
    for name in ("shards", "model"):
        shutil.copytree(bench.folder / name, tmp_path / name)
    text = (bench.folder / "small.yaml").read_text().replace(str(bench.folder), str(tmp_path))
    (tmp_path / "small.yaml").write_text(text)
    return Bench(folder=tmp_path)


def assert_refused(ended: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit code 2 and one message with all the words."""
    assert ended.returncode == 2, ended.stdout
    assert "Traceback" not in ended.stdout
    assert ended.stdout.count("error: ") == 1
    for word in words:
        assert word in ended.stdout


def test_an_unknown_key_is_named_with_the_nearest_right_one(bench: Bench) -> None:
    assert_refused(bench.train(1, "x", "optim.learning_rte=1"), "optim.learning_rte", "unknown key")
    assert_refused(bench.train(1, "x", "batch.global_batch_pack=1"), "did you mean 'batch.global_batch_packs'?")


def test_a_value_in_yaml_and_json_is_refused_naming_both(bench: Bench, tmp_path: Path) -> None:
    both = tmp_path / "both.json"
    both.write_text(json.dumps({"zero_optimization": {"stage": 3}, "gradient_clipping": 0.5}))
    assert_refused(bench.train(1, "x", f"deepspeed={both}"), "gradient_clipping", "optim.grad_clip", str(both))


def test_an_unknown_key_of_the_json_is_refused(bench: Bench, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps({"zero_optimisation": {"stage": 3}}))
    assert_refused(bench.train(1, "x", f"deepspeed={wrong}"), "zero_optimisation", "did you mean 'zero_optimization'?")


def test_an_unknown_zero_key_is_refused_on_every_rank_once(bench: Bench, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps({"zero_optimization": {"stage": 3, "overlap_com": True}}))
    ended = bench.train(1, "x", f"deepspeed={wrong}")
    assert_refused(ended, "zero_optimization.overlap_com", "did you mean 'overlap_comm'?")


def test_a_missing_shard_stops_the_start(broken: Bench) -> None:
    (broken.folder / "shards/train/shard-000001.tar").unlink()
    assert_refused(broken.train(1, "x"), "shard-000001.tar is missing")


def test_a_shard_of_another_size_stops_the_start(broken: Bench) -> None:
    with (broken.folder / "shards/train/shard-000001.tar").open("ab") as shard:
        shard.write(b"x")
    assert_refused(broken.train(1, "x"), "shard-000001.tar has", "the manifest says")


def test_shards_of_another_format_version_are_refused(broken: Bench) -> None:
    manifest = broken.folder / "shards/manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format_version": 99}))
    assert_refused(broken.train(1, "x"), "format version 99")


def test_a_tokenizer_beyond_the_models_vocabulary_stops_the_start(broken: Bench) -> None:
    file = broken.folder / "model/config.json"
    size = json.loads(file.read_text())["vocab_size"]
    file.write_text(json.dumps(json.loads(file.read_text()) | {"vocab_size": size - 64}))
    assert_refused(broken.train(1, "x"), "model/tokenizer.json has id", f"vocabulary of {size - 64}")


def test_without_model_and_shards_it_says_how_to_get_each(tmp_path: Path) -> None:
    command = [sys.executable, "train/main.py", "--set", f"data.shards={tmp_path}/none", "--run", "x"]
    ended = run(command, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    words = "hf download microsoft/Phi-3-vision-128k-instruct", "python -m data.build", "quickstart.yaml"
    assert_refused(ended, *words)


def test_a_port_that_is_taken_is_named(bench: Bench) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        place = {
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        ended = run(bench.command(1, "port"), **place)
    assert_refused(ended, f"127.0.0.1:{port} is taken", "MASTER_PORT=")


def test_when_a_rank_dies_the_others_end(bench: Bench) -> None:
    process = bench.start(2, "dies")
    bench.await_step("dies", 2, process)
    ranks_of(process)[1].kill()
    begun = time.monotonic()
    process.communicate(timeout=2 * SECONDS)
    assert process.returncode != 0
    assert time.monotonic() - begun < SECONDS
    assert bench.status("dies")["state"] == "failed"


@pytest.mark.soak
def test_where_a_loader_worker_is_killed_training_is_as_if_it_had_lived(
    bench: Bench, trained: Callable[..., str]
) -> None:
    process = bench.start(2, "worker")
    bench.await_step("worker", 2, process)
    below = psutil.Process(process.pid).children(recursive=True)
    workers = [child for child in below if "train.pipeline.worker" in " ".join(child.cmdline())]
    assert len(workers) == 2
    workers[1].kill()
    output = process.communicate(timeout=4 * SECONDS)[0]
    assert process.returncode == 0, output
    assert list(map(numbers, bench.lines("worker"))) == list(map(numbers, bench.lines(trained(2))))
    (event,) = records(bench.runs / "worker" / "data_events.jsonl")
    assert event["event"] == "worker"
    assert "SIGKILL" in event["what"]
    assert event["what"] in output


def records(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_bad_samples_are_left_out_and_recorded_alike_on_any_ranks_until_there_are_too_many(broken: Bench) -> None:
    index = Index.open(broken.folder / "shards" / "train" / "index.arrow")
    for number in (3, 17, 30):
        entry = index.entry(number)
        damage(broken.folder / "shards", "train", entry.shard, entry.offset)
    ended = broken.train(2, "two", "stop.steps=10", "evaluate.every_steps=0")
    assert ended.returncode == 0, ended.stdout
    bad = records(broken.runs / "two" / "bad_samples.jsonl")
    assert {record["key"] for record in bad} == {"train-0-3", "train-0-17", "train-1-6"}
    assert [record["step"] for record in bad] == sorted(record["step"] for record in bad)
    counted = {line["step"]: line["bad"] for line in broken.lines("two") if line["bad"]}
    assert counted == Counter(record["step"] for record in bad)
    stopped = broken.train(1, "one", "stop.steps=10", "evaluate.every_steps=0", "data.max_bad=2")
    assert_refused(stopped, "3 samples could not be used", "data.max_bad", "bad_samples.jsonl")
    assert broken.status("one")["state"] == "failed"
    alone = records(broken.runs / "one" / "bad_samples.jsonl")
    assert alone == bad[: len(alone)]


def test_two_jobs_cannot_hold_one_run(bench: Bench) -> None:
    process = bench.start(1, "held")
    bench.await_step("held", 1, process)
    second = bench.train(1, "held")
    process.communicate()
    assert process.returncode == 0
    assert_refused(second, "another training job is using it")
