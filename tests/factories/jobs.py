"""Small trainings submitted to the tests' Slurm by launch/submit, and what can be seen of them."""

import json
import os
import re
from pathlib import Path
from typing import Any

from tests.factories.published_name import NAME
from tests.factories.slurm import Slurm

SITE = """\
GPU_PARTITION=main
CPU_PARTITION=cpu
GPUS_PER_NODE=0
RANKS_PER_NODE=1
CPUS_PER_RANK=1
TRAIN_TIME=30
GRACE_S=60
PYTHON=python
"""
SETTINGS = {
    "model.path": NAME,
    "data.pack_length": "256",
    "stop.epochs": "40",
    "stop.steps": "100",
    "evaluate.every_steps": "0",
    "checkpoint.every_steps": "10",
}


def settings(shards: str = "shards", **more: str) -> list[str]:
    """The small training of these tests, as arguments."""
    values = SETTINGS | {"data.shards": shards} | more
    chosen = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
    return ["--config", "train/configs/quickstart.yaml", *chosen]


def submitted(cluster: Slurm, place: Path, *arguments: str) -> dict[str, int]:
    """Run launch/submit; returns the number of each job by its stage."""
    done = cluster.machines.run(["launch/submit", *arguments], folder=place, environment=cluster.environment)
    print(done.stdout)
    assert done.returncode == 0
    return {stage: int(job) for stage, job in re.findall(r"^(\w[\w: ]*?) +job (\d+)$", done.stdout, re.MULTILINE)}


def show_log(place: Path, job: int) -> str:
    """A training job's log, printed for whoever reads a failure."""
    path = place / f"phi3-vision-{job}.log"
    text = path.read_text() if path.is_file() else ""
    print(text[-8000:])
    return text


def train_lines(folder: Path) -> list[dict[str, Any]]:
    """The training lines of a run without wall-clock values."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "time"} for line in lines if line["kind"] == "train"]


def step(folder: Path) -> int:
    """The last whole line's step in the metrics of a run; 0 before the first."""
    path = folder / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    return int(json.loads(lines[-1])["step"]) if lines else 0


def ranks(cluster: Slurm, *nodes: str) -> list[int]:
    """The processes of training ranks on some nodes."""
    found = []
    for pid in (pid for node in nodes for pid in cluster.machines.pids(node)):
        line = Path(f"/proc/{pid}/cmdline")
        words = line.read_bytes().split(b"\0") if line.exists() else []
        if b"train/main.py" in words and b"python" in Path(os.fsdecode(words[0])).name.encode():
            found.append(pid)
    return found
