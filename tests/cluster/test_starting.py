"""The ways of starting a training: the bare hostfile command with and without hosts, srun, sbatch; and going on."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.factories.published_name import clean_environment, fill_cache, link_checkout
from tests.factories.small_shards import small_shards

BARE = ["deepspeed", "--hostfile", "launch/hosts", "train/main.py"]
LIMIT_S = 1200


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the bare command finds shards/ and the published name in the cache."""
    folder = tmp_path_factory.mktemp("place")
    link_checkout(folder)
    small_shards(folder / "shards", splits=("train", "validation"))
    return folder


@pytest.fixture(scope="module")
def found(place: Path) -> dict[str, str]:
    """The variables by which the published name is found."""
    return fill_cache(place / "cache", place / "shards")


def run(command: list[str], place: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command in `place` to its end."""
    return subprocess.run(
        command, cwd=place, env=environment, capture_output=True, text=True, timeout=LIMIT_S, stdin=subprocess.DEVNULL
    )


def train_lines(folder: Path) -> list[dict[str, Any]]:
    """The training lines of metrics.jsonl without wall-clock values."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "time"} for line in lines if line["kind"] == "train"]


def status(folder: Path) -> dict[str, Any]:
    """What status.json says."""
    record: dict[str, Any] = json.loads((folder / "status.json").read_text())
    return record


def ended_well(done: subprocess.CompletedProcess[str]) -> bool:
    """Whether a command ended with 0; its output is shown where it did not."""
    print(done.stdout[-4000:], done.stderr[-4000:])
    return done.returncode == 0


def test_bare_command_without_hosts_file_trains_on_this_machine(
    place: Path, found: dict[str, str], commands: dict[str, str]
) -> None:
    done = run(BARE, place, clean_environment(commands, found))
    assert ended_well(done)
    assert "cpu" in done.stdout
    assert status(place / "runs/default")["state"] == "finished"


def test_bare_command_with_hosts_file_trains_the_same_batches_on_two_ranks(
    place: Path, found: dict[str, str], commands: dict[str, str], ssh_to_self: dict[str, str]
) -> None:
    (place / "launch/hosts").write_text("# two ranks on this machine\nlocalhost slots=2\n")
    try:
        environment = clean_environment(ssh_to_self, found)
        done = run([*BARE, "--run", "hosts"], place, environment)
    finally:
        (place / "launch/hosts").unlink()
    assert ended_well(done)
    alone, two = train_lines(place / "runs/default"), train_lines(place / "runs/hosts")
    assert [line["label_tokens"] for line in two] == [line["label_tokens"] for line in alone]
    assert status(place / "runs/hosts")["state"] == "finished"


def test_quickstart_configuration_goes_on_after_sigkill_with_equal_lines(
    place: Path, found: dict[str, str], commands: dict[str, str]
) -> None:
    environment = clean_environment(commands, {**found, "LOCAL_SIZE": "2"})

    def command(name: str) -> list[str]:
        settings = ["model.path=microsoft/Phi-3-vision-128k-instruct", "data.shards=shards", "stop.steps=24"]
        settings += ["data.pack_length=256", "checkpoint.every_steps=8", "evaluate.every_steps=8"]
        start = [*BARE, "--config", "train/configs/quickstart.yaml", "--run", name]
        return [*start, *(part for setting in settings for part in ("--set", setting))]

    assert ended_well(run(command("straight"), place, environment))
    killed = place / "runs/killed"
    with (place / "killed.log").open("wb") as log:
        process = subprocess.Popen(
            command("killed"), cwd=place, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    until = time.monotonic() + LIMIT_S
    while not ((killed / "metrics.jsonl").is_file() and len(train_lines_so_far(killed)) > 11):
        assert process.poll() is None, (place / "killed.log").read_text()[-4000:]
        assert time.monotonic() < until
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert ended_well(run(command("killed"), place, environment))
    assert train_lines(killed) == train_lines(place / "runs/straight")


def train_lines_so_far(folder: Path) -> list[bytes]:
    """The whole training lines written by now."""
    return [line for line in (folder / "metrics.jsonl").read_bytes().split(b"\n")[:-1] if b'"train"' in line]


def test_srun_starts_one_rank_a_task(place: Path, found: dict[str, str], slurm: dict[str, str]) -> None:
    done = run(
        ["srun", "--ntasks=2", "python", "train/main.py", "--run", "srun", "--set", "stop.steps=2"],
        place,
        clean_environment(slurm, found),
    )
    assert ended_well(done)
    assert "2 ranks" in done.stdout
    assert status(place / "runs/srun")["state"] == "finished"


def test_sbatch_job_trains_and_says_so_in_its_log(place: Path, found: dict[str, str], slurm: dict[str, str]) -> None:
    sizes = ["--nodes=1", "--ntasks-per-node=2", "--gpus-per-node=0", "--wait"]
    arguments = ["--run", "sbatch", "--set", "stop.steps=2"]
    done = run(["sbatch", *sizes, "launch/train.sbatch", *arguments], place, clean_environment(slurm, found))
    for log in place.glob("phi3-vision-*.log"):
        print(log.read_text()[-4000:])
    assert ended_well(done)
    assert status(place / "runs/sbatch")["state"] == "finished"


@pytest.mark.parametrize("missing", ["model", "shards"])
def test_bare_command_says_how_to_get_what_is_missing(
    tmp_path: Path, place: Path, found: dict[str, str], commands: dict[str, str], missing: str
) -> None:
    link_checkout(tmp_path / "empty")
    variables = dict(found)
    if missing == "model":
        variables["HF_HOME"] = str(tmp_path / "no-cache")
        (tmp_path / "empty/shards").symlink_to(place / "shards")
    done = run([*BARE], tmp_path / "empty", clean_environment(commands, variables))
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert "Traceback" not in said
    assert ("hf download" if missing == "model" else "data.build") in said
    assert "train/configs/quickstart.yaml" in said
