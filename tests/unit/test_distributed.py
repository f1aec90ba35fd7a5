"""Who a process is, under each launcher."""

import pytest

from train.distributed import Place, find_place, first_host, threads_for

SRUN = {
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_STEP_NODELIST": "gpu-[03-04]",
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.9",
    "SLURM_JOB_ID": "4242",
}


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu1", "gpu1"),
        ("gpu-[03-05,9],login", "gpu-03"),
        ("a1,b[2-3]", "a1"),
        ("n[7,9]-ib", "n7-ib"),
        ("rack1-node[001-128]", "rack1-node001"),
    ],
)
def test_the_first_host_of_slurms_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_srun_is_mapped() -> None:
    environment = dict(SRUN)
    assert find_place(environment) == Place(rank=5, local_rank=1, world_size=8, local_world_size=4)
    assert environment["MASTER_ADDR"] == "gpu-03"
    assert environment["MASTER_PORT"] == "24242"


def test_a_batch_script_is_one_process_and_no_rank() -> None:
    environment = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "1"}
    assert find_place(environment) == Place(rank=0, local_rank=0, world_size=1, local_world_size=1)
    assert int(environment["MASTER_PORT"]) > 0


def test_another_launcher_within_slurm_wins() -> None:
    environment = SRUN | {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    assert find_place(environment) == Place(rank=1, local_rank=1, world_size=2, local_world_size=2)


def test_the_deepspeed_launcher_is_understood() -> None:
    environment = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_SIZE": "2"}
    place = find_place(environment)
    assert place == Place(rank=3, local_rank=1, world_size=4, local_world_size=2)
    assert not place.speaks


def test_threads_are_shared_out_unless_the_user_says() -> None:
    place = Place(rank=0, local_rank=0, world_size=10000, local_world_size=10000)
    assert threads_for(place, {}) == 1
    assert threads_for(place, {"OMP_NUM_THREADS": "3"}) is None
