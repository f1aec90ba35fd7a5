"""Small shards, a small model and ways to start a training on several ranks, shared by the tests of this folder."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.factories.small_shards import small_shards
from train.model.tiny import Sizes, make

ROOT = Path(__file__).resolve().parents[2]
SIZES = Sizes(
    hidden=64, layers=2, vision_hidden=32, vision_layers=3, crop_size=28, patch_size=7, num_crops=2, vocab=340
)
SETTINGS = """
model: {precision: fp32, checkpoint_decoder: false, checkpoint_vision: false, crops_per_chunk: 4}
data: {pack_length: 128, window: 32, workers: 1}
batch: {global_batch_packs: 3}
optim: {lr: 1.0e-3, weight_decay: 0.01, warmup_steps: 2}
stop: {steps: 20}
evaluate: {every_steps: 6, packs: 4}
checkpoint: {every_steps: 6, keep_last: 9}
wandb: {mode: disabled}
"""
LIMIT_S = 1200


class Started(subprocess.Popen[str]):
    """A command whose output goes into a file: a pipe that nobody reads holds a long training up once it is full."""

    def __init__(self, command: list[str], folder: Path, **values: str) -> None:
        descriptor, name = tempfile.mkstemp(".out", dir=folder)
        self._output = Path(name)
        with open(descriptor, "w") as stream:
            super().__init__(
                command, cwd=ROOT, env=environment(**values), stdout=stream, stderr=subprocess.STDOUT, text=True
            )

    def communicate(self, input: str | None = None, timeout: float | None = None) -> tuple[str, None]:  # type: ignore[override]
        """Wait for the end; output and errors together."""
        self.wait(timeout)
        return self._output.read_text(), None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A folder with shards, a model and a configuration; runs lie under `runs`."""

    folder: Path
    accelerator: str = "cpu"
    """What DeepSpeed is told to train on."""

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    def command(self, ranks: int, name: str, *settings: str) -> list[str]:
        """What starts a training: plain python for one rank, torchrun for more."""
        start = [sys.executable, "train/main.py"]
        if ranks > 1:
            start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
            start.append("train/main.py")
        given = [f"run.folder={self.runs}", f"run.name={name}", *settings]
        return [
            *start,
            "--config",
            str(self.folder / "small.yaml"),
            *(part for one in given for part in ("--set", one)),
        ]

    def train(self, ranks: int, name: str, *settings: str) -> subprocess.CompletedProcess[str]:
        """Train to the end; output and errors together."""
        return run(self.command(ranks, name, *settings), DS_ACCELERATOR=self.accelerator)

    def start(self, ranks: int, name: str, *settings: str) -> subprocess.Popen[str]:
        """Start a training and go on."""
        return Started(self.command(ranks, name, *settings), self.folder, DS_ACCELERATOR=self.accelerator)

    def lines(self, name: str, kind: str = "train") -> list[dict[str, Any]]:
        """The whole lines of a kind in a run's metrics.jsonl."""
        path = self.runs / name / "metrics.jsonl"
        text = path.read_text() if path.is_file() else ""
        return [line for line in map(json.loads, text.split("\n")[:-1]) if line["kind"] == kind]

    def status(self, name: str) -> dict[str, Any]:
        """A run's status.json."""
        values: dict[str, Any] = json.loads((self.runs / name / "status.json").read_text())
        return values

    def await_step(self, name: str, step: int, process: subprocess.Popen[str]) -> None:
        """Wait until a step is in the metrics."""
        end = time.monotonic() + LIMIT_S
        while len(self.lines(name)) < step:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < end
            time.sleep(0.02)


def environment(**values: str) -> dict[str, str]:
    """The environment of a start, one thread a rank."""
    return os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"} | values


def run(command: list[str], **values: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the checkout; output and errors together."""
    return subprocess.run(
        command,
        cwd=ROOT,
        env=environment(**values),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_S,
    )


def numbers(line: dict[str, Any]) -> dict[str, Any]:
    """A line of metrics.jsonl without its wall-clock values."""
    return {key: value for key, value in line.items() if key != "time"}


def make_bench(folder: Path, accelerator: str = "cpu") -> Bench:
    """Shards, model and configuration in a folder."""
    shards = small_shards(folder / "shards", shards=2, per_shard=24, splits=("train", "validation"))
    make(folder / "model", shards.folder, SIZES, seed=0)
    text = SETTINGS.replace("model: {", f"model: {{path: {folder}/model, ")
    (folder / "small.yaml").write_text(text.replace("data: {", f"data: {{shards: {folder}/shards, "))
    return Bench(folder=folder, accelerator=accelerator)


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Shards, model, configuration; made once."""
    return make_bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="session")
def trained(bench: Bench) -> Callable[..., str]:
    """Trains 20 steps on so many ranks, once for each set of settings; gives the run's name."""
    done: set[str] = set()

    def train(ranks: int, kind: str = "full", *settings: str) -> str:
        name = f"{kind}-{ranks}"
        if name not in done:
            ended = bench.train(ranks, name, *settings)
            assert ended.returncode == 0, ended.stdout
            done.add(name)
        return name

    return train
