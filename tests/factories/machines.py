"""Machines made of namespaces: a login node and two others on a bridge, each with its own name, addresses and sshd.

They share the file system, as the nodes of a cluster share their home folders. Everything is ended by process id.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

START_S = 60
"""How long a daemon may take to answer."""
LOGIN = "login"
NODES = ("node1", "node2")
PLACES = f"{os.environ['PATH']}:/usr/sbin:/sbin"


def needs(*programs: str) -> None:
    """Skip where the test cannot start its daemons."""
    if os.geteuid() != 0:
        pytest.skip("makes namespaces and starts daemons: needs root")
    missing = [name for name in programs if shutil.which(name, path=PLACES) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


def wait_for(ready: Callable[[], bool], what: str, limit_s: float = START_S) -> None:
    """Return when `ready()` holds; raises after `limit_s` seconds."""
    until = time.monotonic() + limit_s
    while not ready():
        if time.monotonic() > until:
            raise TimeoutError(f"{what}: not so within {limit_s} s")
        time.sleep(0.1)


def run(*command: str, check: bool = True) -> str:
    """Run one of the system's own programs; returns what it printed."""
    environment = os.environ | {"PATH": PLACES}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def started(pid: int) -> tuple[float, int]:
    """What puts processes into the order in which they were started."""
    try:
        return psutil.Process(pid).create_time(), pid
    except psutil.NoSuchProcess:
        return 0.0, pid


def end(processes: list[subprocess.Popen[bytes]]) -> None:
    """End daemons, newest first."""
    for process in reversed(processes):
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Machines:
    """`with Machines(folder, "p3v", "10.77.0") as machines:` makes them; the end of the block leaves nothing behind."""

    def __init__(self, folder: Path, prefix: str, network: str) -> None:
        """
        folder: for keys, logs and configurations.
        prefix: of the namespaces' names; what stands under it from a run that was killed is taken away first.
        network: the first three numbers of the machines' addresses.
        """
        self.folder = folder
        self.prefix = prefix
        self.network = network
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.base = dict(os.environ) | {"PATH": PLACES}

    @property
    def addresses(self) -> dict[str, str]:
        return {name: f"{self.network}.{10 + place}" for place, name in enumerate((LOGIN, *NODES))}

    def space(self, machine: str) -> str:
        """The name of a machine's network namespace."""
        return f"{self.prefix}-{machine}"

    def __enter__(self) -> "Machines":
        self.clear()
        try:
            for machine in self.addresses:
                self._make(machine)
            for machine in NODES:
                self._join(machine)
            self._start_all_sshd()
        except BaseException:
            self.clear()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.clear()

    def _hosts(self, machine: str) -> str:
        """/etc/hosts as Debian writes it: a machine's own name leads to the loopback."""
        lines = [f"127.0.1.1 {machine}" if name == machine else f"{ip} {name}" for name, ip in self.addresses.items()]
        return "\n".join(["127.0.0.1 localhost", *lines]) + "\n"

    def _make(self, machine: str) -> None:
        # What `ip netns exec` puts over /etc for the processes of that namespace alone.
        over = Path("/etc/netns") / self.space(machine)
        over.mkdir(parents=True, exist_ok=True)
        (over / "hosts").write_text(self._hosts(machine))
        run("ip", "netns", "add", self.space(machine))
        run("ip", "-n", self.space(machine), "link", "set", "lo", "up")
        if machine == LOGIN:
            run("ip", "-n", self.space(LOGIN), "link", "add", "bridge", "type", "bridge")
            run("ip", "-n", self.space(LOGIN), "addr", "add", f"{self.addresses[LOGIN]}/24", "dev", "bridge")
            run("ip", "-n", self.space(LOGIN), "link", "set", "bridge", "up")

    def _join(self, machine: str) -> None:
        login, space = self.space(LOGIN), self.space(machine)
        run("ip", "-n", login, "link", "add", machine, "type", "veth", "peer", "name", "eth0", "netns", space)
        run("ip", "-n", login, "link", "set", machine, "master", "bridge", "up")
        run("ip", "-n", space, "addr", "add", f"{self.addresses[machine]}/24", "dev", "eth0")
        run("ip", "-n", space, "link", "set", "eth0", "up")

    def _start_all_sshd(self) -> None:
        folder = self.folder / "ssh"
        (folder / "bin").mkdir(parents=True, exist_ok=True)
        Path("/run/sshd").mkdir(exist_ok=True)
        for key in ("host_key", "user_key"):
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key))
        shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
        (folder / "config").write_text(
            f"Host *\n  IdentityFile {folder}/user_key\n  IdentitiesOnly yes\n  StrictHostKeyChecking no\n"
            "  UserKnownHostsFile /dev/null\n  LogLevel ERROR\n"
        )
        wrapper = folder / "bin/ssh"
        wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/config "$@"\n')
        wrapper.chmod(0o755)
        self.base |= {"PATH": f"{folder}/bin:{self.base['PATH']}", "PDSH_RCMD_TYPE": "ssh"}
        for machine in NODES:
            (folder / f"{machine}.conf").write_text(
                f"ListenAddress {self.addresses[machine]}\nListenAddress 127.0.1.1\n"
                f"HostKey {folder}/host_key\nPidFile {folder}/{machine}.pid\n"
                f"AuthorizedKeysFile {folder}/authorized_keys\nPermitRootLogin prohibit-password\n"
                "PasswordAuthentication no\nKbdInteractiveAuthentication no\nStrictModes no\nUsePAM no\n"
                f"SetEnv PATH={PLACES}\n"
            )
            self.start_sshd(machine)
        for machine in NODES:
            reached = ["ssh", "-o", "ConnectTimeout=2", machine, "true"]
            wait_for(lambda reached=reached: self.run(reached).returncode == 0, f"ssh to {machine}")  # type: ignore[misc]

    def start_sshd(self, machine: str) -> None:
        """Start a machine's sshd; after `kill_all` again."""
        sshd = shutil.which("sshd", path=PLACES)
        assert sshd is not None
        self.start(machine, f"sshd-{machine}", sshd, "-D", "-e", "-f", f"{self.folder}/ssh/{machine}.conf")

    def command(self, machine: str, command: list[str]) -> list[str]:
        """A command line that runs `command` on a machine."""
        # UTS alone is unshared here: `ip netns exec` has unshared mounts, and put the machine's /etc/hosts there.
        named = ["unshare", "--uts", "sh", "-c", f'hostname {machine}; exec "$@"', "sh"]
        return ["ip", "netns", "exec", self.space(machine), *named, *command]

    def run(
        self,
        command: list[str],
        *,
        folder: Path | None = None,
        environment: Mapping[str, str] | None = None,
        machine: str = LOGIN,
        limit_s: float = 600,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a machine to its end, with both streams in `stdout`; its output is shown where it failed."""
        done = subprocess.run(
            self.command(machine, command),
            cwd=folder or self.folder,
            env=dict(environment or self.base),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=limit_s,
            check=False,
        )
        return done

    def start(self, machine: str, name: str, *command: str, environment: Mapping[str, str] | None = None) -> None:
        """Start a daemon on a machine, its output in a file of its own."""
        with (self.folder / f"{name}.log").open("ab") as log:
            daemon = subprocess.Popen(
                self.command(machine, list(command)),
                cwd=self.folder,
                env=dict(environment or self.base),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.daemons[name] = daemon

    def pid(self, name: str) -> int:
        """The process id of a daemon."""
        return self.daemons[name].pid

    def pids(self, machine: str) -> list[int]:
        """The processes that are on a machine now."""
        return [int(pid) for pid in run("ip", "netns", "pids", self.space(machine), check=False).split()]

    def kill_all(self, machine: str) -> None:
        """SIGKILL to everything on a machine, as a power cut would: stopped first, so that none sees another end.

        Children before their parents: who stands still as his parent ends is woken by the kernel (SIGHUP, SIGCONT), and
        srun would use that moment to end its job on the other nodes.
        """
        while pids := sorted(self.pids(machine), key=started, reverse=True):
            for number in (signal.SIGSTOP, signal.SIGKILL):
                for pid in pids:
                    with suppress(ProcessLookupError):
                        os.kill(pid, number)
            for daemon in self.daemons.values():
                daemon.poll()
            time.sleep(0.05)

    def link(self, machine: str, state: str) -> None:
        """Put a machine's link `up` or `down`."""
        run("ip", "-n", self.space(LOGIN), "link", "set", machine, state)

    def clear(self) -> None:
        """Take all away that stands under the prefix."""
        end([*self.daemons.values()])
        self.daemons.clear()
        known = {line.split()[0] for line in run("ip", "netns", "list").splitlines() if line}
        for machine in (*NODES, LOGIN):
            if self.space(machine) in known:
                self.kill_all(machine)
                run("ip", "netns", "del", self.space(machine))
            shutil.rmtree(Path("/etc/netns") / self.space(machine), ignore_errors=True)
        with suppress(OSError):
            Path("/etc/netns").rmdir()
