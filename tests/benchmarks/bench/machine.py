"""On what figures were measured: processor, memory, GPUs, versions, commit, and what else kept the machine busy."""

import os
import platform
import re
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = (
    *("torch", "transformers", "deepspeed", "peft", "flash-attn", "liger-kernel", "bitsandbytes", "tokenizers"),
    *("numpy", "pillow", "simplejpeg", "pyarrow", "webdataset"),
)
LOOK_S = 1.0
# Of /proc/stat's line of all processors, in its order; what follows them is counted in them already.
TIMES = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")


def machine() -> dict[str, Any]:
    """The machine: names, cores this process may use, GiB of memory, GPUs with their driver."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "gpus": _gpus(),
        "kernel": platform.release(),
    }


def versions() -> dict[str, str]:
    """Python's version and those of the packages that are there."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit(root: Path = ROOT) -> dict[str, Any] | None:
    """The checkout's commit, and whether anything git knows was changed since; None where there is no git."""
    head = _said(root, "git", "rev-parse", "HEAD")
    if head is None:
        return None
    return {"hash": head.strip(), "changed": bool(_said(root, "git", "status", "--porcelain", "-uno"))}


def _said(root: Path, *command: str) -> str | None:
    """What a command printed; None where it is not there or fails."""
    try:
        return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu() -> str:
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    named = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return " ".join(named[1].split()) if named else platform.machine()


def _gpus() -> list[str]:
    """Name, memory and driver of each, as the driver's own program says."""
    said = _said(ROOT, "nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    return (said or "").splitlines()


def cpu_times() -> dict[str, int]:
    """What all processors did since the machine started, in ticks."""
    numbers = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    return dict(zip(TIMES, map(int, numbers), strict=False))


def share(before: dict[str, int], after: dict[str, int], *names: str) -> float:
    """How much of the processors' time between two readings went into some things."""
    spent = {name: after[name] - before[name] for name in after}
    return sum(spent[name] for name in names) / max(sum(spent.values()), 1)


def others() -> float:
    """The share of the processors that is in use while this process waits: what others take from a measurement."""
    before = cpu_times()
    time.sleep(LOOK_S)
    after = cpu_times()
    return 1 - share(before, after, "idle", "iowait")
