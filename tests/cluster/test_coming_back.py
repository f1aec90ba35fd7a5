"""Jobs that are disturbed under a real Slurm come back as docs/clusters.md says, and train what others do.

A job is disturbed several times, for each start takes long. What a limit says is how soon a job has to be back.
"""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.factories.jobs import ranks, settings, show_log, step, submitted, train_lines
from tests.factories.machines import run, wait_for
from tests.factories.slurm import DONE, Slurm

BACK_S = 90.0
"""Save or miss a rank, give the node back, wait for credentials to expire, start: all on a busy machine."""
SLOW = ("dev", "eth0", "root", "tbf", "rate", "8mbit", "burst", "64kb", "latency", "400ms")


def disturb(cluster: Slurm, job: int, folder: Path, fault: Callable[[], object], after: int = 0) -> None:
    """Do something to a job that is past a step and has taken some since it came back; returns when it is back."""
    after = max(after, step(folder) + 3)
    wait_for(lambda: step(folder) > after, f"step {after} of {folder.name}", BACK_S)
    before = cluster.restarts(job)
    fault()
    wait_for(lambda: cluster.restarts(job) > before, f"{folder.name} comes back", BACK_S)


def test_a_job_that_is_asked_to_leave_comes_back_and_trains_the_same(
    place: Path, cluster: Slurm, straight: list[dict[str, Any]]
) -> None:
    job = submitted(cluster, place, "train", "--run", "asked", "--nodes", "2", *settings())["train"]
    folder = place / "runs/asked"
    # Before it can answer: the ranks have just been started.
    wait_for(lambda: len(ranks(cluster, "node1", "node2")) == 2, "two ranks", BACK_S)
    cluster.ask("scancel", "--signal=USR1", str(job))
    wait_for(lambda: cluster.restarts(job) == 1, "it comes back", BACK_S)
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


def test_a_job_comes_back_from_its_limit_and_a_killed_rank_and_a_second_one_is_refused(
    place: Path, cluster: Slurm, straight: list[dict[str, Any]]
) -> None:
    arguments = ["train", "--run", "limited", "--nodes", "2", *settings()]
    job = submitted(cluster, place, *arguments)["train"]
    folder, space = place / "runs/limited", cluster.machines.space("node2")

    def near_limit() -> None:
        """Have a second job refused, and bring the first one's limit near; Slurm looks at limits twice a minute."""
        run("tc", "-n", space, "qdisc", "add", *SLOW)  # so that the training lasts as long
        second = submitted(cluster, place, *arguments)["train"]
        before = {path: path.read_bytes() for path in (folder / "logs").glob("*.json")}
        assert len(before) == 2
        assert cluster.wait_done(second, BACK_S) == "FAILED"
        assert "another training job is using it (process" in show_log(place, second)
        assert f", job {job})" in show_log(place, second)
        assert {path: path.read_bytes() for path in (folder / "logs").glob("*.json")} == before
        assert not (folder / "tries.json").exists()
        assert json.loads((folder / "status.json").read_text())["state"] == "running"
        hours, minutes, _ = cluster.job(job)["RunTime"].split(":")
        cluster.ask("scontrol", "update", f"JobId={job}", f"TimeLimit={60 * int(hours) + int(minutes) + 1}")

    try:
        disturb(cluster, job, folder, near_limit)
    finally:
        run("tc", "-n", space, "qdisc", "del", "dev", "eth0", "root", check=False)
    cluster.ask("scontrol", "update", f"JobId={job}", "TimeLimit=30")
    disturb(cluster, job, folder, lambda: os.kill(ranks(cluster, "node2")[0], signal.SIGKILL), after=50)
    ended = cluster.wait_done(job)
    text = show_log(place, job)
    assert ended == "COMPLETED"
    assert "limited: SIGUSR1 after step" in text
    assert "first error: rank 1 on node2: ended without a word" in text
    assert train_lines(folder) == straight


def test_a_run_that_comes_no_further_is_stopped_after_three_tries(place: Path, cluster: Slurm) -> None:
    job = submitted(cluster, place, "train", "--run", "loop", "--nodes", "1", *settings())["train"]
    seen: set[int] = set()

    def killed() -> bool:
        """Kill each rank that is started; whether the job has ended."""
        for pid in {*ranks(cluster, "node1", "node2")} - seen:
            seen.add(pid)
            os.kill(pid, signal.SIGKILL)
        return cluster.state(job) in DONE

    wait_for(killed, "the guard against a crash loop", 3 * BACK_S)
    text = show_log(place, job)
    assert cluster.state(job) == "FAILED"
    assert cluster.restarts(job) == 2
    status = json.loads((place / "runs/loop/status.json").read_text())
    assert status["state"] == "failed"
    assert "no new step in 3 tries" in status["reason"]
    assert status["reason"] in text
