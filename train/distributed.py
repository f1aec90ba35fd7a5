"""The ranks of a run: who they are under any launcher, how they agree, how they end."""

import os
import socket
import sys
import warnings
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from data.schema import UserError
from train.interfaces import choose_interface, is_here

if TYPE_CHECKING:
    import torch

Result = TypeVar("Result")
Failure = TypeVar("Failure", bound=Exception)

# A collective that has waited this long hangs: longer than rank 0 alone may take for a step of the start or a save.
TIMEOUT = timedelta(minutes=30)
PORT = 29500


class StartError(UserError):
    """The ranks could not be brought together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Which process this is, as the launcher says; known before torch is imported."""

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int

    @property
    def several_nodes(self) -> bool:
        """Whether ranks are on more than one machine."""
        return self.local_world_size < self.world_size

    @property
    def speaks(self) -> bool:
        """Whether this process tells people of errors: one a node does."""
        return self.local_rank == 0


def first_host(nodes: str) -> str:
    """The first host of Slurm's list, for example `gpu-[03-05,9],login` gives `gpu-03`."""
    name, bracket, rest = nodes.partition("[")
    if not bracket or "," in name:
        return nodes.partition(",")[0]
    inside, _, suffix = rest.partition("]")
    return name + inside.replace("-", ",").partition(",")[0] + suffix.partition(",")[0]


def map_slurm(environment: MutableMapping[str, str]) -> None:
    """Set what torch.distributed reads from what srun sets, unless another launcher has; a batch script is no rank."""
    if "RANK" in environment or "SLURM_PROCID" not in environment or "SLURM_STEP_ID" not in environment:
        return
    tasks = environment.get("SLURM_STEP_NUM_TASKS", environment.get("SLURM_NTASKS", "1"))
    here = environment.get("SLURM_STEP_TASKS_PER_NODE", environment.get("SLURM_TASKS_PER_NODE", tasks))
    nodes = environment.get("SLURM_STEP_NODELIST", environment.get("SLURM_JOB_NODELIST", ""))
    environment["RANK"] = environment["SLURM_PROCID"]
    environment["LOCAL_RANK"] = environment.get("SLURM_LOCALID", "0")
    environment["WORLD_SIZE"] = tasks
    environment["LOCAL_WORLD_SIZE"] = here.partition("(")[0].partition(",")[0]
    # Rank 0 is on the first node of the step; the launch node may be a login node, so it is asked last.
    address = first_host(nodes) if nodes else environment.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1")
    environment.setdefault("MASTER_ADDR", address)
    environment.setdefault("MASTER_PORT", str(20000 + int(environment.get("SLURM_JOB_ID", "0")) % 10000))


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def find_place(environment: MutableMapping[str, str]) -> Place:
    """Read who this process is (deepspeed, torchrun, srun, or alone) and fill in what torch.distributed needs."""
    map_slurm(environment)
    if "RANK" not in environment:
        alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
        environment.update(alone, MASTER_PORT=str(free_port()))
    environment.setdefault("LOCAL_RANK", "0")
    local = environment.get("LOCAL_WORLD_SIZE") or environment.get("LOCAL_SIZE") or environment["WORLD_SIZE"]
    return Place(
        rank=int(environment["RANK"]),
        local_rank=int(environment["LOCAL_RANK"]),
        world_size=int(environment["WORLD_SIZE"]),
        local_world_size=int(local),
    )


def threads_for(place: Place, environment: Mapping[str, str]) -> int | None:
    """Threads of one rank's operators: the cores shared out; None where OMP_NUM_THREADS already says."""
    if environment.get("OMP_NUM_THREADS"):
        return None
    cores = len(os.sched_getaffinity(0))
    return max(1, cores // place.local_world_size)


def marked(error: Failure, tells: bool) -> Failure:
    """The error with a note of whether this rank is the one to tell people of it."""
    error.tells = tells  # type: ignore[attr-defined]
    return error


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The ranks brought together. Small numbers and objects go between CPUs, beside the accelerators' own traffic."""

    place: Place
    device: "torch.device"
    group: Any
    """Gloo group of all ranks; None where there is one rank."""

    @property
    def rank(self) -> int:
        return self.place.rank

    @property
    def size(self) -> int:
        return self.place.world_size

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes and prints for all."""
        return self.place.rank == 0

    def sum_integers(self, values: Sequence[int]) -> list[int]:
        """The sums over the ranks of as many integers on each."""
        import torch

        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.int64)
        torch.distributed.all_reduce(total, group=self.group)
        return total.tolist()

    def gather_floats(self, values: Sequence[float]) -> list[list[float]]:
        """Every rank's numbers (float64, as many on each) in the order of the ranks."""
        import torch

        if self.size == 1:
            return [list(values)]
        mine = torch.tensor(values, dtype=torch.float64)
        every = torch.empty(self.size * len(values), dtype=torch.float64)
        torch.distributed.all_gather_single(every, mine, group=self.group)
        return every.view(self.size, len(values)).tolist()

    def gather_objects(self, value: Any) -> list[Any]:
        """Every rank's object in the order of the ranks."""
        import torch

        if self.size == 1:
            return [value]
        every = [None] * self.size
        torch.distributed.all_gather_object(every, value, group=self.group)
        return every

    def from_first(self, work: Callable[[], Result]) -> Result:
        """Do `work` on rank 0 alone and give every rank its result; where it raises, every rank raises the same."""
        found: tuple[Any, Exception | None] = (None, None)
        if self.first:
            try:
                found = (work(), None)
            except Exception as raised:
                found = (None, raised)
        if self.size > 1:
            import torch

            box = [found]
            torch.distributed.broadcast_object_list(box, src=0, group=self.group)
            found = box[0]
        result, error = found
        if error is not None:
            raise marked(error, self.first)
        return result

    def agree(self, work: Callable[[], Result]) -> Result:
        """Do `work`, which has no collectives in it, on every rank; where it raises on one, every rank raises."""
        result: Result | None = None
        mine: Exception | None = None
        try:
            result = work()
        except Exception as error:
            mine = error
        self.raise_together(mine)
        return result  # type: ignore[return-value]

    def raise_together(self, mine: Exception | None) -> None:
        """Where any rank comes with an error, every rank raises the one of the lowest such rank."""
        for rank, error in enumerate(self.gather_objects(mine)):
            if error is not None:
                raise marked(mine if mine is not None and rank == self.rank else error, rank == self.rank)

    def barrier(self) -> None:
        """Wait for all ranks."""
        import torch

        if self.size > 1:
            torch.distributed.barrier(group=self.group)


def pick_device(place: Place, environment: MutableMapping[str, str]) -> "torch.device":
    """The accelerator of this rank, or the CPU with DeepSpeed told so; to be called before deepspeed is imported."""
    import torch

    if environment.get("DS_ACCELERATOR", "cuda") != "cpu" and torch.cuda.is_available():
        count = torch.cuda.device_count()
        if place.local_rank >= count and "SLURM_STEP_ID" not in environment:
            host = socket.gethostname()
            raise StartError(
                f"{host} has {count} GPU{'s' if count > 1 else ''}, and {place.local_world_size} ranks were started on "
                f"it; in a hostfile write: {host} slots={count}, by hand: --num_gpus {count}"
            )
        # Slurm may show each task its own GPU alone, which then is number 0.
        environment["LOCAL_RANK"] = str(place.local_rank % count)
        device = torch.device("cuda", int(environment["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        return device
    if place.rank == 0 and environment.get("DS_ACCELERATOR") != "cpu":
        print("no GPU found: training on the CPU, ranks talking over gloo", flush=True)
    environment["DS_ACCELERATOR"] = "cpu"
    threads = threads_for(place, environment)
    if threads is not None:
        torch.set_num_threads(threads)
    return torch.device("cpu")


def bring_together(place: Place, environment: MutableMapping[str, str]) -> World:
    """Join the process group of all ranks; raises StartError where the address cannot be used or a rank is missing."""
    import torch

    device = pick_device(place, environment)
    choose_interface(environment, place.several_nodes)
    import deepspeed

    # DeepSpeed calls collectives by names that torch is giving up, several times a pass.
    warnings.filterwarnings("ignore", message="`torch.distributed.*` is deprecated", category=FutureWarning)
    # A C++ operator for inference, which DeepSpeed would compile here at the first start on a CPU; a start killed
    # meanwhile leaves a lock file behind that every later start waits for.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

    address = f"{environment['MASTER_ADDR']}:{environment.get('MASTER_PORT', PORT)}"
    if place.rank == 0 and not is_here(environment["MASTER_ADDR"]):
        # DeepSpeed's launcher starts a hostfile's only host where the command is typed, whatever its name.
        raise StartError(
            f"rank 0 runs on {socket.gethostname()}, but the ranks are to meet at {environment['MASTER_ADDR']}, which "
            "is another machine; type the command on that one (a hostfile of one host starts no ranks by ssh), or "
            "give --force_multi before train/main.py"
        )
    try:
        deepspeed.init_distributed(timeout=TIMEOUT, auto_mpi_discovery=False, verbose=False)
    except torch.distributed.DistNetworkError as error:
        if "EADDRINUSE" in str(error):
            free = free_port()
            raise StartError(
                f"{address} is taken by another program (another training on this machine?); choose a free port: "
                f"`deepspeed --master_port {free} train/main.py …` or MASTER_PORT={free}"
            ) from error
        raise StartError(f"rank {place.rank} cannot reach rank 0 at {address}: {error}") from error
    except torch.distributed.DistStoreError as error:
        raise StartError(
            f"after {TIMEOUT} not all of {place.world_size} ranks have come to {address}: {error}; "
            "look for one that failed"
        ) from error
    group = None
    if place.world_size > 1:
        group = torch.distributed.group.WORLD
        if device.type != "cpu":
            group = torch.distributed.new_group(backend="gloo", timeout=TIMEOUT)
    return World(place=place, device=device, group=group)


def part() -> None:
    """Leave the process group; without this, gloo's threads end the interpreter with an abort."""
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def end_at_once(code: int) -> None:
    """Leave now: what is left of the interpreter's ending could wait for a rank that is gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
