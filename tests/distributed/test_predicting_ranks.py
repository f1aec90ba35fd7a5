"""The command on 1, 2 and 3 ranks, and killed in between: one file of predictions, byte for byte."""

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.distributed.conftest import ROOT, environment
from tests.factories.trained import make_run, make_shards

LIMIT_S = 600


def command(ranks: int, place: Path, output: Path) -> list[str]:
    """The command a person types for so many ranks."""
    start = [sys.executable]
    if ranks > 1:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    asked = [place / "runs/one", place / "shards", "--split", "train", "--batch-size", "1", "--output", output]
    return [*start, "train/predict.py", *map(str, asked)]


def start(ranks: int, place: Path, output: Path, threads: int = 1) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(ranks, place, output),
        cwd=ROOT,
        env=environment(OMP_NUM_THREADS=str(threads)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def answered(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in folder.glob(".*.parts/*.lines"))


@pytest.mark.soak
def test_ranks_and_kills_leave_the_same_bytes(tmp_path: Path) -> None:
    make_shards(tmp_path / "shards")
    make_run(tmp_path / "runs/one", tmp_path / "shards", tmp_path / "base")
    files = []
    for ranks, threads in ((1, 1), (2, 1), (3, 1), (1, 2)):
        output = tmp_path / f"{ranks}-{threads}.jsonl"
        process = start(ranks, tmp_path, output, threads)
        assert "24 predictions" in process.communicate(timeout=LIMIT_S)[0]
        files.append(output.read_bytes())
    output = tmp_path / "killed.jsonl"
    for ranks, enough in ((2, 2), (1, 5), (3, 9)):
        process = start(ranks, tmp_path, output)
        end = time.monotonic() + LIMIT_S
        while answered(tmp_path) < enough:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < end
            time.sleep(0.005)
        # Ranks that torchrun starts are in sessions of their own.
        for one in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
            one.kill()
        process.communicate(timeout=LIMIT_S)
        assert not output.exists()
    said = start(2, tmp_path, output).communicate(timeout=LIMIT_S)[0]
    assert "going on" in said
    files.append(output.read_bytes())
    assert len(set(files)) == 1
