"""Jobs that are disturbed under a real Slurm come back as docs/clusters.md says, and train what others do.

A job is disturbed several times, for each start takes long. What a limit says is how soon a job has to be back.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.factories.jobs import ranks, settings, show_log, step, submitted, train_lines
from tests.factories.machines import wait_for
from tests.factories.slurm import Slurm

BACK_S = 90.0
"""Save or miss a rank, give the node back, wait for credentials to expire, start: all on a busy machine."""


@pytest.fixture(scope="module")
def straight(place: Path, cluster: Slurm) -> list[dict[str, Any]]:
    """The lines of a run that nothing disturbed."""
    job = submitted(cluster, place, "train", "--run", "straight", "--nodes", "2", *settings())["train"]
    assert cluster.wait_done(job) == "COMPLETED", show_log(place, job)
    return train_lines(place / "runs/straight")


def restarts(cluster: Slurm, job: int) -> int:
    """How often a job came back."""
    return int(cluster.job(job).get("Restarts", "0"))


def disturb(cluster: Slurm, job: int, folder: Path, fault: Callable[[], object], after: int = 0) -> None:
    """Do something to a job that is past a step and has taken some since it came back; returns when it is back."""
    after = max(after, step(folder) + 3)
    wait_for(lambda: step(folder) > after, f"step {after} of {folder.name}", BACK_S)
    before = restarts(cluster, job)
    fault()
    wait_for(lambda: restarts(cluster, job) > before, f"{folder.name} comes back", BACK_S)


def test_a_job_that_is_asked_to_leave_comes_back_and_trains_the_same(
    place: Path, cluster: Slurm, straight: list[dict[str, Any]]
) -> None:
    job = submitted(cluster, place, "train", "--run", "asked", "--nodes", "2", *settings())["train"]
    folder = place / "runs/asked"
    # Before it can answer: the ranks have just been started.
    wait_for(lambda: len(ranks(cluster, "node1", "node2")) == 2, "two ranks", BACK_S)
    cluster.ask("scancel", "--signal=USR1", str(job))
    wait_for(lambda: restarts(cluster, job) == 1, "it comes back", BACK_S)
    disturb(cluster, job, folder, lambda: cluster.ask("scancel", "--signal=USR1", str(job)))
    disturb(cluster, job, folder, lambda: cluster.ask("scontrol", "requeue", str(job)), after=35)
    ended = cluster.wait_done(job)
    text = show_log(place, job)
    assert ended == "COMPLETED"
    assert "SIGUSR1 after step 0" in text
    assert text.count("asked: SIGUSR1 after step") == 2
    assert "SIGTERM after step" in text
    assert "first error" not in text
    assert train_lines(folder) == straight
