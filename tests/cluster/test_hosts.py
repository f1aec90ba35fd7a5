"""`python -m train.hostfile` before the launcher: over ssh to two nodes, each of which may have something wrong."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.factories.machines import Machines, run

TWO = "node1 slots=1\nnode2 slots=1\n"


@contextmanager
def only_on_node2(machines: Machines, over: Path, what: Path) -> Iterator[None]:
    """Put a folder over another where node2's sshd, and what it starts, sees it."""
    inside = ["nsenter", "-t", str(machines.pid("sshd-node2")), "-m"]
    run(*inside, "mount", "--bind", str(what), str(over))
    try:
        yield
    finally:
        run(*inside, "umount", str(over))


def looked_at(machines: Machines, place: Path, environment: dict[str, str], hosts: str) -> tuple[int, list[str]]:
    """Look at hosts from node1; returns the exit code and the lines printed."""
    (place / "launch/hosts").write_text(hosts)
    try:
        command = ["python", "-m", "train.hostfile", "--dry-run"]
        done = machines.run(command, machine="node1", folder=place, environment=environment, limit_s=120)
    finally:
        (place / "launch/hosts").unlink()
    return done.returncode, done.stdout.splitlines()


def test_two_sound_hosts_are_reached(machines: Machines, place: Path, by_ssh: dict[str, str]) -> None:
    code, lines = looked_at(machines, place, by_ssh, TWO)
    assert (code, lines[0]) == (0, "launch/hosts: 2 hosts, 2 ranks; all can be reached")


def test_a_name_that_leads_nowhere_is_told_beside_a_host_that_is_sound(
    machines: Machines, place: Path, by_ssh: dict[str, str]
) -> None:
    code, lines = looked_at(machines, place, by_ssh, "node1 slots=1\nnode7.invalid slots=1\n")
    assert (code, len(lines)) == (2, 1)
    assert "launch/hosts:2: the name node7.invalid leads nowhere" in lines[0]


def test_a_host_that_asks_for_a_password_is_told(machines: Machines, place: Path, by_ssh: dict[str, str]) -> None:
    keys = machines.folder / "ssh/authorized_keys"
    kept = keys.read_bytes()
    keys.write_bytes(b"")
    try:
        code, lines = looked_at(machines, place, by_ssh, TWO)
    finally:
        keys.write_bytes(kept)
    assert (code, len(lines)) == (2, 2)
    assert "ssh to node2 asks for a password; let a key in: ssh-copy-id node2" in lines[1]


def test_a_host_without_the_folder_and_with_fewer_gpus_is_told(
    machines: Machines, place: Path, by_ssh: dict[str, str], tmp_path: Path
) -> None:
    tools, empty = tmp_path / "tools", tmp_path / "empty"
    for folder in (tmp_path, tools, empty):
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)
    (tools / "nvidia-smi").write_text("#!/bin/sh\necho 'GPU 0: one'\n")
    (tools / "nvidia-smi").chmod(0o755)
    with only_on_node2(machines, Path("/usr/local/bin"), tools), only_on_node2(machines, place, empty):
        code, lines = looked_at(machines, place, by_ssh, "node1 slots=1\nnode2 slots=2\n")
    assert (code, len(lines)) == (2, 2)
    assert f"node2 has no checkout at {place}" in lines[0]
    assert "launch/hosts:2: node2 has 1 GPUs, not 2; write: node2 slots=1" in lines[1]
