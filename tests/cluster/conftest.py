"""Two nodes for the tests of this folder, made once: machines of namespaces with ssh, and a real Slurm over them."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.factories.jobs import SITE, settings, show_log, submitted, train_lines
from tests.factories.machines import Machines, needs
from tests.factories.published_name import clean_environment, fill_cache, link_checkout
from tests.factories.slurm import Slurm
from tests.factories.small_shards import small_shards


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder is marked `cluster`."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session")
def commands() -> dict[str, str]:
    """The environment in which this interpreter's `deepspeed`, `torchrun` and `python` are found first."""
    return os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin"}


@pytest.fixture(scope="session")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """login, node1 and node2, with ssh between them."""
    needs("ip", "tc", "sshd", "ssh", "ssh-keygen", "pdsh", "unshare")
    folder = tmp_path_factory.mktemp("machines")
    # Munge and sshd look at every folder on the way to their files.
    for above in (folder, *folder.parents):
        if above.stat().st_uid == os.getuid() and above != Path("/"):
            above.chmod(above.stat().st_mode | 0o055)
    with Machines(folder, "p3v", "10.77.0") as made:
        made.base["PATH"] = f"{folder}/ssh/bin:{Path(sys.executable).parent}:{made.base['PATH']}"
        yield made


@pytest.fixture(scope="session")
def slurm(machines: Machines) -> Slurm:
    """A Slurm of node1 and node2; its daemons end with the machines."""
    needs("munged", "slurmctld", "slurmd", "srun")
    made = Slurm(machines)
    made.start()
    return made


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the bare command finds shards/ and the published name in the cache."""
    folder = tmp_path_factory.mktemp("place")
    link_checkout(folder)
    small_shards(folder / "shards", splits=("train", "validation"))
    return folder


@pytest.fixture(scope="session")
def found(place: Path) -> dict[str, str]:
    """The variables by which the published name is found."""
    return fill_cache(place / "cache", place / "shards")


@pytest.fixture(scope="session")
def by_ssh(machines: Machines, found: dict[str, str]) -> dict[str, str]:
    """An environment of the login node for commands that start others by ssh."""
    return clean_environment(machines.base, found)


@pytest.fixture(scope="session")
def by_slurm(slurm: Slurm, found: dict[str, str]) -> dict[str, str]:
    """An environment of the login node for Slurm's commands."""
    return clean_environment(slurm.environment, found | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"})


@pytest.fixture(scope="session")
def cluster(place: Path, slurm: Slurm, by_slurm: dict[str, str]) -> Slurm:
    """The Slurm, with launch/site.env filled in for it, and whose jobs find the model."""
    site = place / "launch/site.env"
    site.unlink()
    site.write_text(SITE)
    slurm.environment = by_slurm
    return slurm


@pytest.fixture(scope="session")
def straight(place: Path, cluster: Slurm) -> list[dict[str, Any]]:
    """The lines of a run that nothing disturbed."""
    job = submitted(cluster, place, "train", "--run", "undisturbed", "--nodes", "2", *settings())["train"]
    assert cluster.wait_done(job) == "COMPLETED", show_log(place, job)
    return train_lines(place / "runs/undisturbed")
