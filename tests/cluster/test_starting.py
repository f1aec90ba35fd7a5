"""A training by hostfile: on two nodes as on one, going on after SIGKILL, and what the bare command says is missing."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.factories.machines import Machines
from tests.factories.published_name import clean_environment, link_checkout

BARE = ["deepspeed", "--hostfile", "launch/hosts", "train/main.py"]
# Small packs in fp32: the published recipe's take many seconds each on a CPU.
SMALL = {"model.precision": "fp32", "data.pack_length": "512", "data.workers": "1", "batch.global_batch_packs": "2"}
SMALL |= {"stop.steps": "4"}
QUICK = [part for key, value in SMALL.items() for part in ("--set", f"{key}={value}")]
LIMIT_S = 1200


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


def test_two_nodes_train_as_two_ranks_on_one_node(place: Path, machines: Machines, by_ssh: dict[str, str]) -> None:
    hosts = {"one": "node1 slots=2\n", "two": "# by pdsh over ssh\nnode1 slots=1\nnode2 slots=1\n"}
    (place / ".deepspeed_env").write_text(
        f"HF_HOME={by_ssh['HF_HOME']}\nHF_HUB_OFFLINE=1\nWANDB_MODE=disabled\nOMP_NUM_THREADS=1\n"
    )
    for name, lines in hosts.items():
        (place / "launch/hosts").write_text(lines)
        try:
            command = [*BARE, "--run", name, *QUICK]
            done = machines.run(command, machine="node1", folder=place, environment=by_ssh, limit_s=180)
        finally:
            (place / "launch/hosts").unlink()
        print(done.stdout[-4000:])
        assert done.returncode == 0
        assert "ZeRO-3" in done.stdout
        assert status(place / "runs" / name)["state"] == "finished"
    one, two = train_lines(place / "runs/one"), train_lines(place / "runs/two")
    assert [line["loss"] for line in two] == [line["loss"] for line in one]
    assert len(two) == 4


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
