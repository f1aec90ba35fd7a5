"""Runs that are killed, moved to other numbers of ranks, and long: the weights are those of an undisturbed run."""

import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.distributed.conftest import Bench, numbers
from tests.distributed.test_lora import LORA
from tests.distributed.test_resume import ranks_of
from tests.factories.jobs import step
from train.checkpoint import problem
from train.keeping import found

KILLS = 30
KILLED = ("checkpoint.every_steps=1", "checkpoint.keep_last=2", "checkpoint.keep_best=0", "evaluate.every_steps=0")
MOVES = ((4, 4), (2, 8), (3, 12), (1, 16), (4, 20))
"""Ranks, and the step at which they are asked to leave."""
LONG, FROM, GROWTH_MB = 2000, 500, 10.0


def final(bench: Bench, name: str) -> dict[str, bytes]:
    """The files of slices of a run's last checkpoint."""
    folder = found(bench.runs / name)[-1]
    return {file.name: file.read_bytes() for file in folder.glob("*.safetensors")}


def kill_one(process: subprocess.Popen[str], dice: random.Random) -> None:
    """End a random rank at a random moment from now on."""
    time.sleep(dice.uniform(0.0, 1.5))
    ranks = ranks_of(process)
    if ranks:
        dice.choice(ranks).kill()


@pytest.mark.soak
def test_thirty_kills_of_random_ranks_at_random_moments_change_no_bit(bench: Bench) -> None:
    # A start gets some steps further before it is ended: enough of them for all kills.
    steps = (f"stop.steps={15 * KILLS}", *KILLED)
    ended = bench.train(2, "unkilled", *steps)
    assert ended.returncode == 0, ended.stdout
    dice = random.Random(0)
    name, kills = "killed", 0
    while kills < KILLS:
        had = newest_step(bench, name)
        process = bench.start(2, name, *steps)
        while newest_step(bench, name) <= had and process.poll() is None:
            time.sleep(0.02)
        kill_one(process, dice)
        output = process.communicate()[0]
        if process.returncode == 0:
            break
        kills += 1
        assert "going on from" in output or not had
        # A kill leaves what is whole, or what is not there: never a checkpoint under its name that is not whole.
        assert [problem(folder) for folder in found(bench.runs / name)] == [None] * len(found(bench.runs / name))
    assert kills >= min(KILLS, 25)
    ended = bench.train(2, name, *steps)
    assert ended.returncode == 0, ended.stdout
    assert final(bench, name) == final(bench, "unkilled")
    assert list(map(numbers, bench.lines(name))) == list(map(numbers, bench.lines("unkilled")))


def own_mb(pid: int) -> float:
    """What a process wrote into memory of its own, in MB.

    Without files' pages: of a library those count as its own as long as no other process has the library open.
    """
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty:")) * 1024 / 1e6


def newest_step(bench: Bench, name: str) -> int:
    """The step of a run's newest checkpoint, 0 before the first."""
    return max((int(folder.name[5:]) for folder in found(bench.runs / name)), default=0)


@pytest.mark.soak
@pytest.mark.parametrize(("kind", "settings"), [("full", ()), ("lora", LORA)])
def test_a_run_moves_from_four_ranks_to_two_three_one_and_four(
    bench: Bench, trained: Callable[..., str], kind: str, settings: tuple[str, ...]
) -> None:
    reference, name = trained(4, kind, *settings), f"moves-{kind}"
    for ranks, until in MOVES:
        process = bench.start(ranks, name, *settings)
        if until < 20:
            bench.await_step(name, until, process)
            for rank in ranks_of(process):
                rank.send_signal(signal.SIGTERM)
        output = process.communicate()[0]
        assert process.returncode == 0, output
    before, after = bench.lines(reference), bench.lines(name)
    assert [line["step"] for line in after] == list(range(1, 21))
    assert [line["keys"] for line in after] == [line["keys"] for line in before]
    assert [line["loss"] for line in after] == pytest.approx([line["loss"] for line in before], rel=1e-4)


@pytest.mark.soak
def test_two_thousand_steps_with_saves_and_evaluation_keep_their_memory(bench: Bench) -> None:
    name = "long"
    settings = (
        f"stop={{steps: {LONG}, epochs: 10000.0}}",
        "batch.global_batch_packs=1",
        "checkpoint.every_steps=50",
        "evaluate={every_steps: 100, packs: 2}",
        "optim.lr=1e-5",
    )
    process = bench.start(1, name, *settings)
    held: dict[int, float] = {}
    while process.poll() is None:
        saved, now = newest_step(bench, name), step(bench.runs / name)
        # Some steps on, the copy that the save was written from is gone; the next measurement has not begun.
        if saved and saved not in held and saved + 5 <= now < saved + 45:
            try:
                held[saved] = own_mb(process.pid)
            except OSError:
                break
        time.sleep(0.05)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    later = {step: size for step, size in held.items() if step >= FROM}
    print({step: round(size, 1) for step, size in sorted(held.items())})
    assert len(later) >= 20
    assert max(later.values()) - later[min(later)] < GROWTH_MB
