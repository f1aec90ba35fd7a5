"""A job under a real Slurm that loses its first node, is preempted by another job, and loses the link of a node.

One job after the other, as each start takes long. It may have fewer nodes, so that it does not wait for the lost one.
"""

import json
import time
from pathlib import Path
from typing import Any

from tests.factories.jobs import ranks, settings, show_log, step, submitted, train_lines
from tests.factories.machines import wait_for
from tests.factories.slurm import Slurm

BACK_S = 90.0
"""Slurm misses a node (20 to 27 s here), lets credentials expire, the ranks start: all on a busy machine."""
STALL_MINUTES = 0.2
LOST_S = 10.0
"""A rank that dies takes its connections with it; the others end as soon as they see that."""
CUT_S = 60 * STALL_MINUTES + 3 * 60 * STALL_MINUTES / 10 + LOST_S
"""Nothing comes over a link that is cut: the limit and three beats, and what a busy machine adds."""


def ended_after(cluster: Slurm, limit_s: float, *nodes: str) -> float:
    """Seconds until the last rank on these nodes is gone."""
    begun = time.monotonic()
    wait_for(lambda: not ranks(cluster, *nodes), f"the ranks on {', '.join(nodes)} end", limit_s)
    return time.monotonic() - begun


def wait_for_step(cluster: Slurm, job: int, folder: Path, tries: int, wanted: int) -> list[str]:
    """Return when a job that came back so often has taken a step; its nodes."""
    wait_for(lambda: cluster.restarts(job) == tries, f"{folder.name} comes back", BACK_S)
    wait_for(lambda: step(folder) > wanted, f"step {wanted} of {folder.name}", BACK_S)
    return cluster.nodes(job)


def test_a_job_outlives_a_dead_node_a_preemption_and_a_cut_link(
    place: Path, cluster: Slurm, straight: list[dict[str, Any]]
) -> None:
    machines, folder = cluster.machines, place / "runs/lost"
    asked = settings(**{"run.stall_minutes": str(STALL_MINUTES)})
    job = submitted(cluster, place, "train", "--run", "lost", "--nodes", "2", "--min-nodes", "1", *asked)["train"]
    try:
        assert wait_for_step(cluster, job, folder, 0, 12) == ["node1", "node2"]

        # The node of rank 0 and of the batch script, with its slurmd and all else on it.
        machines.kill_all("node1")
        print(f"dead node: the other rank ended after {ended_after(cluster, LOST_S, 'node2'):.1f} s")
        survivor = json.loads((folder / "logs/rank-00001.json").read_text())
        assert survivor["ending"] == "lost"
        assert "onnection" in survivor["text"]
        wait_for(lambda: cluster.restarts(job) == 1, "Slurm puts it back", BACK_S)
        assert wait_for_step(cluster, job, folder, 1, 25) == ["node2"]

        urgent = cluster.ask("sbatch", "--parsable", "--partition=urgent", "--exclusive", "--wrap=sleep 600")
        wait_for(lambda: cluster.restarts(job) == 2, "it makes room", BACK_S)
        wait_for(lambda: cluster.nodes(int(urgent)) == ["node2"], "the other job begins", BACK_S)
        cluster.ask("scontrol", "hold", str(job))
        cluster.restart_node("node1")
        cluster.ask("scancel", urgent)
        cluster.wait_idle()
        cluster.ask("scontrol", "release", str(job))
        assert wait_for_step(cluster, job, folder, 2, 40) == ["node1", "node2"]

        machines.link("node2", "down")
        print(f"cut link: all ranks ended after {ended_after(cluster, CUT_S, 'node1', 'node2'):.1f} s")
        first = json.loads((folder / "logs/rank-00000.json").read_text())
        assert first["ending"] == "lost"
        assert "rank 1 on node2 has given no sign of life" in first["text"]
        assert wait_for_step(cluster, job, folder, 3, 50) == ["node1"]
        assert cluster.wait_done(job) == "COMPLETED"
    finally:
        text = show_log(place, job)
        cluster.ask("scancel", str(job))
        machines.link("node2", "up")
        # Slurm would take its time to ask a node that it has given up.
        for node in ("node1", "node2"):
            cluster.restart_node(node)
        cluster.wait_idle()
    assert "lost: SIGTERM after step" in text
    assert ", preempted" in text
    found = train_lines(folder)
    assert [line["step"] for line in found] == [line["step"] for line in straight]
    assert [line["keys"] for line in found] == [line["keys"] for line in straight]
    # Of a step's two packs, one rank adds the same two gradients as two do.
    assert [line["loss"] for line in found] == [line["loss"] for line in straight]
