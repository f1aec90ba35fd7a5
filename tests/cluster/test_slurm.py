"""launch/ before a real Slurm of two nodes: what it takes, and what is refused before it is queued."""

from pathlib import Path
from typing import Any

import pytest

from tests.factories.jobs import SITE, settings
from tests.factories.slurm import Slurm

ROWS = 80


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--nodes", "3"], "--nodes 3: the partition has 2"),
        (["--set", "model.path=nowhere"], "model.path: no folder nowhere"),
        (["--set", "data.shards=nowhere"], "no shards at nowhere"),
        (["--run", "undisturbed", "--set", "optim.lr=0.5"], "this run was started with other settings"),
    ],
)
def test_what_would_fail_in_the_queue_is_refused_before_it(
    place: Path, cluster: Slurm, straight: list[dict[str, Any]], arguments: list[str], said: str
) -> None:
    before = cluster.ask("squeue", "-h")
    done = cluster.machines.run(
        ["launch/submit", "train", *settings(), *arguments], folder=place, environment=cluster.environment
    )
    assert done.returncode == 2
    assert said in done.stdout
    assert cluster.ask("squeue", "-h") == before


def test_a_partition_that_does_not_exist_is_refused(place: Path, cluster: Slurm) -> None:
    site = place / "launch/site.env"
    site.write_text(SITE.replace("GPU_PARTITION=main", "GPU_PARTITION=gold"))
    try:
        done = cluster.machines.run(["launch/submit", "train"], folder=place, environment=cluster.environment)
    finally:
        site.write_text(SITE)
    assert done.returncode == 2
    assert "there is no such partition; there are main, cpu, urgent" in done.stdout


def test_slurm_takes_every_script_and_a_dry_run_queues_nothing(place: Path, cluster: Slurm) -> None:
    stages = ["shards", "train", "evaluate", "export", "--preset", "burberry", "--source", "catalogue/catalogue.csv"]
    done = cluster.machines.run(
        ["launch/submit", *stages, *settings(), "--nodes", "2", "--dry-run"],
        folder=place,
        environment=cluster.environment,
    )
    print(done.stdout)
    assert done.returncode == 0
    assert done.stdout.count("to start at") == 7
    assert "nothing was submitted" in done.stdout
    for script in sorted((place / "launch").glob("*.sbatch")):
        said = cluster.ask("sbatch", "--test-only", f"launch/{script.name}", folder=place)
        assert "to start at" in said, said
