"""launch/ under a real Slurm of two nodes: stages by dependencies, and what is refused before it is queued."""

import json
from pathlib import Path

import pytest

from data.sample.catalogue import write_sample
from tests.factories.jobs import SITE, settings, show_log, submitted
from tests.factories.slurm import Slurm

ROWS = 80


def test_stages_follow_each_other_from_a_catalogue_to_an_export(place: Path, cluster: Slurm) -> None:
    write_sample(place / "catalogue", ROWS, 0, None)
    stages = ["shards", "train", "evaluate", "export"]
    source = ["--preset", "burberry", "--source", "catalogue/catalogue.csv", "--parts", "2"]
    arguments = [*stages, *source, "--run", "chain", "--nodes", "2", *settings("built", **{"stop.steps": "4"})]
    arguments += ["--build", "--shard-samples 20 --max-rejected 1"]
    jobs = submitted(cluster, place, *arguments)
    assert list(jobs) == [
        "shards: fetch",
        "shards: split",
        "shards: write",
        "shards: join",
        "train",
        "evaluate",
        "export",
    ]
    ended = {stage: cluster.wait_done(job) for stage, job in jobs.items()}
    for path in place.glob("phi3-vision*.log"):
        print(path.name, path.read_text()[-1500:])
    assert set(ended.values()) == {"COMPLETED"}
    assert json.loads((place / "runs/chain/status.json").read_text())["state"] == "finished"
    assert "2 ranks" in show_log(place, jobs["train"])
    assert (place / "runs/chain/report.html").is_file()
    assert (place / "runs/chain/export/model.safetensors").is_file()
    said = cluster.ask("launch/status", "chain", folder=place)
    assert "runs/chain: finished (stop.steps = 4), step 4 of 4" in said
    assert "first error" not in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--nodes", "3"], "--nodes 3: the partition has 2"),
        (["--set", "model.path=nowhere"], "model.path: no folder nowhere"),
        (["--set", "data.shards=nowhere"], "no shards at nowhere"),
        (["--run", "chain", "--set", "optim.lr=0.5"], "this run was started with other settings"),
    ],
)
def test_what_would_fail_in_the_queue_is_refused_before_it(
    place: Path, cluster: Slurm, arguments: list[str], said: str
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
