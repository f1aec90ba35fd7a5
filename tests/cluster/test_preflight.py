"""The preflight on two nodes: silent where they are alike, else it names the node, what is wrong, what to do."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.factories.machines import Machines, run
from tests.factories.small_shards import damage

COMMAND = ["deepspeed", "--hostfile", "launch/hosts", "train/preflight.py"]
NOT_LIKE_NODE1 = """\
import importlib.metadata, os, platform, socket, time
if socket.gethostname() == "node2":
    if os.environ["PYTHON_FAULT"] == "clock":
        now = time.time
        time.time = lambda: now() + 5.0
    else:
        version = importlib.metadata.version
        importlib.metadata.version = lambda name: "0.0.1" if name == "peft" else version(name)
        platform.python_version = lambda: "3.9.1"
"""


@pytest.fixture
def hosts(place: Path) -> Iterator[Path]:
    """The hostfile of both nodes."""
    path = place / "launch/hosts"
    path.write_text("node1 slots=1\nnode2 slots=1\n")
    yield path
    path.unlink()


def look(
    machines: Machines, place: Path, environment: dict[str, str], name: str, more: tuple[str, ...] = ()
) -> tuple[int, str]:
    """Run a preflight from node1, with more variables for both nodes; returns the exit code, and what it printed."""
    (place / ".deepspeed_env").write_text(
        f"HF_HOME={environment['HF_HOME']}\nHF_HUB_OFFLINE=1\nOMP_NUM_THREADS=1\n" + "".join(more)
    )
    done = machines.run([*COMMAND, "--run", name], machine="node1", folder=place, environment=environment, limit_s=120)
    print(done.stdout[-6000:])
    return done.returncode, done.stdout


def faults(place: Path, name: str) -> list[dict]:
    """The faults that a preflight left in the run's folder."""
    found = json.loads((place / "runs" / name / "preflight.json").read_text())["findings"]
    return [one for one in found if one["fault"]]


def test_two_sound_nodes_pass_within_a_minute(
    machines: Machines, place: Path, by_ssh: dict[str, str], hosts: Path
) -> None:
    code, printed = look(machines, place, by_ssh, "sound")
    assert code == 0
    assert faults(place, "sound") == []
    assert "2 nodes are fit to train" in printed
    written = json.loads((place / "runs/sound/preflight.json").read_text())
    assert written["seconds"] < 60
    assert [node["interface"] for node in written["nodes"]] == ["eth0", "eth0"]
    assert (place / "runs/sound/preflight.txt").read_text().splitlines()[-1] in printed
    assert list((place / "runs/sound").glob(".preflight-*")) == []


@pytest.mark.parametrize(
    ("fault", "said"),
    [("clock", ["its clock is +5.0 s"]), ("version", ["peft is 0.0.1, elsewhere", "python is 3.9.1, elsewhere"])],
    ids=["clock", "version"],
)
def test_a_node_with_another_clock_or_version_is_named(
    machines: Machines, place: Path, by_ssh: dict[str, str], hosts: Path, tmp_path: Path, fault: str, said: list[str]
) -> None:
    (tmp_path / "sitecustomize.py").write_text(NOT_LIKE_NODE1)
    # The launcher hands on what begins with PYTHON.
    changed = by_ssh | {"PYTHONPATH": str(tmp_path), "PYTHON_FAULT": fault}
    code, printed = look(machines, place, changed, fault)
    assert code != 0
    assert [one["node"] for one in faults(place, fault)] == ["node2"] * len(said)
    assert [text for text in said if text not in printed] == []


def test_a_slowed_node_is_named(machines: Machines, place: Path, by_ssh: dict[str, str], hosts: Path) -> None:
    queue = ("dev", "eth0", "root", "tbf", "rate", "40mbit", "burst", "64kb", "latency", "400ms")
    run("tc", "-n", machines.space("node2"), "qdisc", "add", *queue)
    try:
        code, printed = look(machines, place, by_ssh, "slowed")
    finally:
        run("tc", "-n", machines.space("node2"), "qdisc", "del", "dev", "eth0", "root")
    assert code != 0
    assert [one["node"] for one in faults(place, "slowed")] == ["node2"]
    assert "node2: sends to node1 at" in printed


def test_a_wrong_shard_a_full_disk_and_a_folder_of_its_own_are_named(
    machines: Machines, place: Path, by_ssh: dict[str, str], hosts: Path, tmp_path: Path
) -> None:
    """All three on node2 alone, by mounts that only its sshd and what it starts can see."""
    tmp_path.chmod(0o755)
    shutil.copytree(place / "shards", tmp_path / "shards")
    for shard in range(3):
        damage(tmp_path / "shards", "train", shard, 2000)
    temporary, other, own = place / "temporary", tmp_path / "own", place / "runs/own"
    for folder in (temporary, other, own):
        folder.mkdir()
    sshd = machines.pid("sshd-node2")
    inside = ["nsenter", "-t", str(sshd), "-m"]
    mounts = [
        ("--bind", str(tmp_path / "shards"), str(place / "shards")),
        ("-t", "tmpfs", "-o", "size=1m", "none", str(temporary)),
        ("--bind", str(other), str(own)),
    ]
    try:
        for mount in mounts:
            run(*inside, "mount", *mount)
        code, printed = look(machines, place, by_ssh, "own", (f"TMPDIR={temporary}\n",))
    finally:
        for mount in reversed(mounts):
            run(*inside, "umount", mount[-1], check=False)
    assert code != 0
    assert {one["node"] for one in faults(place, "own")} == {"node2"}
    assert "has another content than the manifest says" in printed
    assert f"{temporary} has 1 MB free" in printed
    assert "does not see what another node writes into" in printed
