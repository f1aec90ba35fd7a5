"""The nodes of these tests leave nothing behind, however the tests end."""

import os
from pathlib import Path

import pytest

from tests.factories.machines import Machines, needs, run, wait_for

PROCESSES = 5


def left(prefix: str) -> list[str]:
    """What there is of machines under a prefix, and the processes that would be theirs."""
    spaces = [line for line in run("ip", "netns", "list").splitlines() if line.startswith(prefix)]
    links = [line for line in run("ip", "link").splitlines() if prefix in line]
    folders = [str(path) for path in Path("/etc/netns").glob(f"{prefix}*")]
    mounts = [line for line in Path("/proc/mounts").read_text().splitlines() if prefix in line]
    return [*spaces, *links, *folders, *mounts]


def pids_of(machines: Machines) -> list[int]:
    return [pid for machine in machines.addresses for pid in machines.pids(machine)]


def alive(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_nothing_is_left_after_a_failure(tmp_path: Path) -> None:
    needs("ip", "sshd", "ssh-keygen", "unshare")
    pids: list[int] = []

    def fail() -> None:
        with Machines(tmp_path, "p3w", "10.78.0") as machines:
            machines.start("node1", "sleeper", "sh", "-c", "trap '' TERM; sleep 1000 & wait; sleep 1000")
            machines.run(["sh", "-c", "sleep 1000 >/dev/null 2>&1 &"], machine="node2")
            # Two sshd, two shells' sleeps, a shell: what was started last is there a moment later on a busy machine.
            wait_for(lambda: len(pids_of(machines)) >= PROCESSES, "what runs on both nodes")
            pids.extend(pids_of(machines))
            raise RuntimeError("a test failed")

    with pytest.raises(RuntimeError, match="a test failed"):
        fail()
    assert [pid for pid in pids if alive(pid)] == []
    assert left("p3w") == []


def test_nothing_is_left_where_a_machine_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("ip", "sshd", "ssh-keygen", "unshare")
    monkeypatch.setattr(Machines, "_start_all_sshd", lambda self: os.stat(tmp_path / "not-there"))
    with pytest.raises(FileNotFoundError), Machines(tmp_path, "p3w", "10.78.0"):
        pass
    assert left("p3w") == []


def test_what_a_killed_run_left_is_taken_away_by_the_next(tmp_path: Path) -> None:
    needs("ip", "sshd", "ssh-keygen", "unshare")
    killed = Machines(tmp_path / "first", "p3w", "10.78.0")
    (tmp_path / "first").mkdir()
    killed.__enter__()
    old = [pid for machine in killed.addresses for pid in killed.pids(machine)]
    (tmp_path / "second").mkdir()
    with Machines(tmp_path / "second", "p3w", "10.78.0") as machines:
        assert machines.run(["ssh", "node2", "hostname"]).stdout.strip() == "node2"
        assert [pid for pid in old if alive(pid)] == []
    assert left("p3w") == []
