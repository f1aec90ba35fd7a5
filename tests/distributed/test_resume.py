"""Going on after a signal, a kill, and on another number of ranks."""

import json
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.distributed.conftest import Bench, numbers
from tests.factories.object_store import object_store


def ranks_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The training processes below a launcher, workers left out."""
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if "train/main.py" in " ".join(child.cmdline())]


def copy_until(run: Path, step: int, target: Path) -> None:
    """A run as it stood when a step's checkpoint was the newest."""
    shutil.copytree(run, target)
    for folder in (target / "checkpoints").iterdir():
        if int(folder.name[5:]) > step:
            shutil.rmtree(folder)


def test_a_run_that_was_asked_to_leave_and_then_killed_ends_as_if_nothing_had_been(
    bench: Bench, trained: Callable[..., str]
) -> None:
    reference = trained(2)
    name = "interrupted"
    process = bench.start(2, name)
    bench.await_step(name, 2, process)
    ranks_of(process)[1].send_signal(signal.SIGTERM)  # the other learns of it from this one
    output = process.communicate()[0]
    assert process.returncode == 0, output
    status = bench.status(name)
    assert status["state"] == "preempted"
    assert status["step"] == len(bench.lines(name))
    assert status["checkpoint"] == f"checkpoints/step-{status['step']:06d}"
    assert "SIGTERM" in status["reason"]

    process = bench.start(2, name)
    bench.await_step(name, 9, process)
    for rank in ranks_of(process):
        rank.kill()
    process.communicate()
    assert process.returncode != 0

    ended = bench.train(2, name)
    assert ended.returncode == 0, ended.stdout
    assert "going on from" in ended.stdout
    assert [numbers(line) for line in bench.lines(name)] == [numbers(line) for line in bench.lines(reference)]
    validated = [numbers(line) for line in bench.lines(name, "validation")]
    assert validated == [numbers(line) for line in bench.lines(reference, "validation")]
    for file in sorted((bench.runs / reference / "checkpoints/step-000020").glob("*.safetensors")):
        assert file.read_bytes() == (bench.runs / name / "checkpoints/step-000020" / file.name).read_bytes()


@pytest.mark.parametrize(("kind", "ranks"), [("full", 3), pytest.param("zero2", 1, marks=pytest.mark.soak)])
def test_a_run_goes_on_with_another_number_of_ranks(
    bench: Bench, trained: Callable[..., str], kind: str, ranks: int
) -> None:
    settings = () if kind == "full" else ("deepspeed=ds_configs/zero2.json",)
    reference = trained(2, kind, *settings)
    name = f"{kind}-2-then-{ranks}"
    copy_until(bench.runs / reference, 12, bench.runs / name)
    config = bench.runs / name / "config.yaml"
    config.write_text(config.read_text().replace(f"name: {reference}", f"name: {name}"))
    ended = bench.train(ranks, name, *settings)
    assert ended.returncode == 0, ended.stdout
    assert f"ranks: 2 -> {ranks}" in ended.stdout
    before, after = bench.lines(reference), bench.lines(name)
    assert [line["step"] for line in after] == list(range(1, 21))
    assert after[12]["loss"] == pytest.approx(before[12]["loss"], rel=1e-5)
    assert [line["keys"] for line in after] == [line["keys"] for line in before]
    assert [line["loss"] for line in after[12:]] == pytest.approx([line["loss"] for line in before[12:]], rel=1e-4)


def test_a_damaged_checkpoint_is_passed_over_and_a_longer_run_goes_on(
    bench: Bench, trained: Callable[..., str]
) -> None:
    reference = trained(1)
    name = "longer"
    copy_until(bench.runs / reference, 20, bench.runs / name)
    config = bench.runs / name / "config.yaml"
    config.write_text(config.read_text().replace(f"name: {reference}", f"name: {name}"))
    victim = next((bench.runs / name / "checkpoints/step-000020").glob("*.safetensors"))
    content = bytearray(victim.read_bytes())
    content[-9] ^= 1
    victim.write_bytes(content)
    ended = bench.train(1, name, "stop.steps=21")
    assert ended.returncode == 0, ended.stdout
    assert "step-000020 is not whole" in ended.stdout
    assert "going on from" in ended.stdout
    assert "step-000018" in ended.stdout
    assert "stop.steps: 20 -> 21" in ended.stdout
    assert [line["step"] for line in bench.lines(name)] == list(range(1, 22))


def test_other_settings_are_refused_with_the_keys_that_differ(bench: Bench, trained: Callable[..., str]) -> None:
    name = trained(1)
    before = json.dumps(bench.status(name))
    ended = bench.train(1, name, "optim.lr=0.5", "stop.steps=30")
    assert ended.returncode == 2
    assert "optim.lr: 0.001 -> 0.5" in ended.stdout
    assert "stop.steps" not in ended.stdout
    assert "--run" in ended.stdout
    assert "Traceback" not in ended.stdout
    assert json.dumps(bench.status(name)) == before


def test_shards_in_an_object_store_give_the_same_run_also_when_it_is_killed(
    bench: Bench, trained: Callable[..., str], tmp_path: Path
) -> None:
    reference = trained(1)
    name, cache = "far", tmp_path / "cache"
    settings = ("data.shards=s3://bucket/shards", f"data.shard_cache={cache}")
    with object_store() as system:
        system.put(str(bench.folder / "shards"), "bucket/shards", recursive=True)
        process = bench.start(1, name, *settings)
        bench.await_step(name, 8, process)
        process.kill()
        process.communicate()
        ended = bench.train(1, name, *settings)
    assert ended.returncode == 0, ended.stdout
    assert "going on from" in ended.stdout
    assert [numbers(line) for line in bench.lines(name)] == [numbers(line) for line in bench.lines(reference)]
    validated = [numbers(line) for line in bench.lines(name, "validation")]
    assert validated == [numbers(line) for line in bench.lines(reference, "validation")]
    assert sorted(cache.glob("*.tar"))  # whole shards were fetched, not only ranges of them
