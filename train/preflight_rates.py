"""What ranks measure together before they train: clocks, links, all-reduce, matrices. Collective."""

import socket
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from train.distributed import World

if TYPE_CHECKING:
    import torch

ROUNDS = 5
LONG_ENOUGH_S = 0.2
SMALLEST = 1 << 18
LARGEST = {"cpu": 1 << 24, "cuda": 1 << 28}
CONNECT_S = 5.0


def clock_offsets(world: World) -> list[float]:
    """Seconds by which each rank's clock is before rank 0's; exact to what a barrier takes."""
    offsets: list[list[float]] = [[] for _ in range(world.size)]
    for _ in range(ROUNDS):
        world.barrier()
        told = world.gather_floats([time.time()])
        for rank, (said,) in enumerate(told):
            offsets[rank].append(said - told[0][0])
    return [statistics.median(one) for one in offsets]


def _wait(device: "torch.device") -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _rate(world: World, exchange: Callable[["torch.Tensor"], float]) -> float:
    """Bytes a second of an exchange on this rank, with as much data as lasts long enough to be timed.

    exchange: moves a tensor, collectively; returns the seconds that this rank took.
    """
    import torch

    size = SMALLEST
    while True:
        data = torch.zeros(size // 4, dtype=torch.float32, device=world.device)
        spent = []
        for _ in range(3):  # the first one sets up connections
            world.barrier()
            spent.append(exchange(data))
        slowest = max(values[0] for values in world.gather_floats([min(spent)]))
        if slowest > LONG_ENOUGH_S or size >= LARGEST.get(world.device.type, SMALLEST):
            return size / max(min(spent), 1e-9)
        size *= 8


def all_reduce_rate(world: World) -> float:
    """Bus rate of an all-reduce over all ranks, in bytes a second; 0 where there is one."""
    import torch

    def exchange(data: "torch.Tensor") -> float:
        begun = time.perf_counter()
        torch.distributed.all_reduce(data)
        _wait(world.device)
        return time.perf_counter() - begun

    return _rate(world, exchange) * 2 * (world.size - 1) / world.size if world.size > 1 else 0.0


def ring_rates(world: World, firsts: list[int]) -> list[float]:
    """Bytes a second that each node's first rank receives from that of the node before it.

    In turns, so that no node sends and receives at once: what a slow card sends would delay its own receipts, and its
    neighbour would pass for slow too.
    firsts: the first rank of each node.
    """
    import torch

    count = len(firsts)
    place = firsts.index(world.rank) if world.rank in firsts else None
    # Every second one; of an odd number the last one alone.
    turn_of = [2 if count % 2 and sender == count - 1 else sender % 2 for sender in range(count)]
    rates = [0.0] * count
    for turn in sorted(set(turn_of)):

        def exchange(data: "torch.Tensor", turn: int = turn) -> float:
            if place is None:
                return 0.0
            begun = time.perf_counter()
            if turn_of[place - 1] == turn:
                torch.distributed.recv(data, firsts[place - 1])
                _wait(world.device)
                return time.perf_counter() - begun
            if turn_of[place] == turn:
                torch.distributed.send(data, firsts[(place + 1) % count])
            return 0.0

        gathered = world.gather_floats([_rate(world, exchange)])
        for receiver, rank in enumerate(firsts):
            if turn_of[receiver - 1] == turn:
                rates[receiver] = gathered[rank][0]
    return rates


def matrix_rate(device: "torch.device") -> float:
    """Operations a second of a matrix product on this rank's device: bf16 on a GPU, fp32 on a CPU."""
    import torch

    on_gpu = device.type == "cuda"
    size, kind = (8192, torch.bfloat16) if on_gpu else (512, torch.float32)
    left = torch.ones(size, size, dtype=kind, device=device)
    best = 0.0
    for _ in range(4):
        begun = time.perf_counter()
        for _ in range(4):
            left @ left
        _wait(device)
        best = max(best, 4 * 2 * size**3 / (time.perf_counter() - begun))
    return best


def unreachable(world: World, address: str) -> list[int]:
    """The ranks that cannot connect to a port which rank 0 opens, as the heartbeat does; one rank a node tries."""
    port = 0
    server = None
    if world.first:
        server = socket.create_server(("", 0), backlog=1024)
        port = server.getsockname()[1]
    port = world.from_first(lambda: port)
    failed = 0.0
    if world.place.speaks:
        try:
            socket.create_connection((address, port), timeout=CONNECT_S).close()
        except OSError:
            failed = 1.0
    found = [rank for rank, (value,) in enumerate(world.gather_floats([failed])) if value]
    if server is not None:
        server.close()
    return found
