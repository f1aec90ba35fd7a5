"""How much memory processes hold: this one now and at most, and a command with all that it starts."""

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
    """Of the processor, by it and all that it started, but for what each did in its last moment."""


def watch(command: Sequence[str], cwd: Path) -> Watched:
    """Run a command to its end and watch the memory and the processor's time of it and its children."""
    peak, begun = 0, time.monotonic()
    used: dict[tuple[int, float], float] = {}
    with tempfile.TemporaryFile("w+") as log, subprocess.Popen(command, cwd=cwd, stdout=log, stderr=log) as running:
        main = psutil.Process(running.pid)
        while running.poll() is None:
            family = _family(main)
            peak = max(peak, sum(_unique_bytes(one) for one in family))
            used |= {(one.pid, one.create_time()): _cpu_s(one) for one in family}
            time.sleep(PAUSE_S)
        seconds = time.monotonic() - begun
        log.seek(0)
        return Watched(code=running.returncode, said=log.read(), peak=peak, seconds=seconds, cpu_s=sum(used.values()))


def _family(main: psutil.Process) -> list[psutil.Process]:
    """A process and its children; none where it has ended meanwhile."""
    try:
        return [main, *main.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _cpu_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


def _unique_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().uss)
    except (psutil.NoSuchProcess, psutil.AccessDenied):  # ended, or ends while its figures are read
        return 0
