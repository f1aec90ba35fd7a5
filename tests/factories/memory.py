"""How much memory processes hold: this one now and at most, and a command with all that it starts."""

import resource
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

PAUSE_S = 0.05


def status_bytes(field: str) -> int:
    """A line of this process's status: VmRSS, what is resident now; VmHWM, what was at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def reset_peak() -> None:
    """Let VmHWM start again from VmRSS."""
    Path("/proc/self/clear_refs").write_text("5")


def own_bytes() -> int:
    """This process's unique set size: what belongs to it alone."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean:", "Private_Dirty:")))


class Peak(threading.Thread):
    """Watches this process's unique set size from when it was made."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.base = self.most = own_bytes()
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(PAUSE_S):
            self.most = max(self.most, own_bytes())


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """A command that has ended."""

    code: int
    said: str
    """On stdout and stderr."""
    peak: int
    """Most bytes that it and all that it started held for themselves alone, together."""
    seconds: float
    cpu_s: float
    """Of the processor, by it and all that it started and waited for."""


def watch(command: Sequence[str], cwd: Path) -> Watched:
    """Run a command to its end and watch the memory of it and its children."""
    peak, begun, used = 0, time.monotonic(), _children_cpu_s()
    with tempfile.TemporaryFile("w+") as log, subprocess.Popen(command, cwd=cwd, stdout=log, stderr=log) as running:
        main = psutil.Process(running.pid)
        while running.poll() is None:
            peak = max(peak, _family_bytes(main))
            time.sleep(PAUSE_S)
        seconds = time.monotonic() - begun
        log.seek(0)
        cpu_s = _children_cpu_s() - used
        return Watched(code=running.returncode, said=log.read(), peak=peak, seconds=seconds, cpu_s=cpu_s)


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _family_bytes(main: psutil.Process) -> int:
    """Unique set size of a process and its children, together; those that end meanwhile hold nothing."""
    try:
        family = [main, *main.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    return sum(_unique_bytes(one) for one in family)


def _unique_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().uss)
    except (psutil.NoSuchProcess, psutil.AccessDenied):  # ended, or ends while its figures are read
        return 0
