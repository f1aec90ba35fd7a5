"""Looks at every node of a job before it trains, and names the one that is not like the others.

    deepspeed --hostfile launch/hosts train/preflight.py [--config FILE] [--set section.key=value …] [--run NAME]

Started as a training is, by any launcher; a training on several nodes does it first of all (`--preflight never` leaves
it out). Prints a table, a line for each thing found, and a verdict; the same stands in preflight.txt and preflight.json
of the run's folder. Exit codes: 0 nothing that should keep a job from beginning; 2 something should.
"""

import sys
from pathlib import Path

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import fcntl
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from data.schema import UserError
from data.whole import write_whole
from train.config import DEFAULT, load
from train.config_schema import Config
from train.distributed import World, bring_together, end_at_once, find_place, marked, part
from train.node_facts import node_facts
from train.preflight_findings import Finding, findings
from train.preflight_rates import all_reduce_rate, clock_offsets, matrix_rate, ring_rates, unreachable

USER_ERROR = 2
SEEN_WITHIN_S = 5.0


class PreflightError(UserError):
    """A job should not begin on these nodes."""


def own_device(world: World) -> dict[str, Any]:
    """What this rank computes on."""
    import torch

    rate = matrix_rate(world.device)
    if world.device.type != "cuda":
        return {"rank": world.rank, "name": "cpu", "number": "", "free": 0, "total": 0, "rate": rate}
    free, total = torch.cuda.mem_get_info(world.device)
    name = torch.cuda.get_device_name(world.device)
    return {
        "rank": world.rank,
        "name": name,
        "number": str(world.device.index),
        "free": free,
        "total": total,
        "rate": rate,
    }


def sees(path: Path) -> bool:
    """Whether a file that another node wrote is there, after what a network file system may take to show it."""
    until = time.monotonic() + SEEN_WITHIN_S
    while not path.is_file():
        if time.monotonic() > until:
            return False
        time.sleep(0.2)
        if path.parent.is_dir():
            os.listdir(path.parent)  # has a client of NFS ask for the folder anew
    return True


def is_locked(path: Path) -> bool:
    """Whether a lock that another node holds on a file keeps this one from taking it."""
    with path.open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def look_at_shared(world: World, run: Path) -> tuple[bool, bool]:
    """Whether this rank sees rank 0's file in the run's folder, and the lock that is on it; collective."""
    held = []

    def leave_mark() -> Path:
        mark = run / f".preflight-{os.getpid()}-{time.time_ns()}"
        try:
            run.mkdir(parents=True, exist_ok=True)
            held.append(mark.open("w"))
        except OSError as error:
            raise PreflightError(
                f"{run}: cannot be written ({error.strerror}); set run.folder to a folder that can"
            ) from error
        fcntl.flock(held[0], fcntl.LOCK_EX)
        return mark

    mark = world.from_first(leave_mark)
    seen = world.first or sees(mark)
    locked = world.first or (seen and is_locked(mark))
    world.barrier()
    for file in held:
        file.close()
        mark.unlink(missing_ok=True)
    return seen, locked


def examine(world: World, config: Config, run: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What is known of each node, and of all of them together; collective."""
    shared, locks = look_at_shared(world, run)

    def look() -> dict[str, Any]:
        if not world.place.speaks:
            return {}
        return node_facts(config, run) | {"first": world.rank, "shared": shared, "locks": locks}

    mine = world.agree(look)
    offsets = clock_offsets(world)
    told = world.gather_objects(mine)
    devices = world.gather_objects(own_device(world))
    nodes = [node for node in told if node]
    firsts = [node["first"] for node in nodes]
    away = unreachable(world, os.environ["MASTER_ADDR"])
    received = ring_rates(world, firsts) if len(nodes) > 1 else [0.0]
    reduced = all_reduce_rate(world)
    ends = [*firsts[1:], world.size]
    for node, rate, end in zip(nodes, received, ends, strict=True):
        node["receives_mb_s"] = rate / 1e6
        node["clock_s"] = offsets[node["first"]]
        node["reaches_first"] = node["first"] not in away
        node["devices"] = devices[node["first"] : end]
    return nodes, {"ranks": world.size, "all_reduce_mb_s": reduced / 1e6}


def table(nodes: Sequence[dict[str, Any]], run: Path) -> list[str]:
    """A line for each node, as wide as they need."""
    head = ["node", "ranks", "device", "TFLOP/s", "memory", "run folder", "tmp", "clock", "receives", "by", "shards"]
    rows = [head]
    for node in nodes:
        rates = [device["rate"] / 1e12 for device in node["devices"]]
        rows.append(
            [
                node["host"],
                str(len(rates)),
                node["devices"][0]["name"],
                f"{min(rates):.2f}-{max(rates):.2f}" if len(rates) > 1 else f"{rates[0]:.2f}",
                f"{node['memory'] / 1e9:,.0f} GB",
                f"{node['room'][str(run)] / 1e9:,.0f} GB",
                f"{node['room'][node['temporary']] / 1e9:,.1f} GB",
                f"{node['clock_s']:+.2f} s",
                f"{node['receives_mb_s']:,.0f} MB/s" if len(nodes) > 1 else "-",
                node["interface"] or "-",
                "wrong" if node["shards"].startswith("error: ") else node["shards"],
            ]
        )
    wide = [max(len(row[place]) for row in rows) for place in range(len(head))]
    return ["  ".join(cell.ljust(size) for cell, size in zip(row, wide, strict=True)).rstrip() for row in rows]


def verdict(nodes: Sequence[dict[str, Any]], found: Sequence[Finding], seconds: float) -> str:
    """The last line."""
    faults = [one for one in found if one.fault]
    if not faults:
        return f"preflight: {len(nodes)} node{'s are' if len(nodes) > 1 else ' is'} fit to train ({seconds:.0f} s)"
    names = ", ".join(dict.fromkeys(one.node for one in faults))
    return f"preflight: {len(faults)} fault{'s' if len(faults) > 1 else ''} on {names} ({seconds:.0f} s)"


def preflight(world: World, config: Config, run: Path) -> None:
    """Look at all nodes; rank 0 prints and writes what was found. Collective.

    Raises PreflightError on every rank where something should keep a job from beginning.
    """
    begun = time.perf_counter()
    nodes, together = examine(world, config, run)

    def tell() -> list[str]:
        found = findings(nodes, str(run))
        seconds = time.perf_counter() - begun
        last = verdict(nodes, found, seconds)
        reduced = f"all-reduce over {together['ranks']} ranks: {together['all_reduce_mb_s']:,.0f} MB/s"
        lines = [*table(nodes, run), reduced, *(one.line() for one in found)]
        print("\n".join([*lines, last]), flush=True)
        values = {"nodes": nodes, "together": together, "findings": [asdict(one) for one in found], "seconds": seconds}
        try:
            write_whole(run / "preflight.txt", ("\n".join([*lines, last]) + "\n").encode())
            write_whole(run / "preflight.json", (json.dumps(values, indent=2) + "\n").encode())
        except OSError as error:
            print(f"{run}: what was found cannot be written there ({error.strerror})", flush=True)
        return [one.line() for one in found if one.fault]

    faults = world.from_first(tell)
    if faults:
        said = "\n  ".join(line.removeprefix("fault").strip() for line in faults)
        error = PreflightError(
            f"preflight found nodes that are not fit to train:\n  {said}\n"
            "mend that, leave the node out, or begin all the same with --preflight never"
        )
        raise marked(error, world.first)


def main(arguments: Sequence[str] | None = None) -> int:
    """Look at the nodes and say what was found; returns the exit code."""
    parser = argparse.ArgumentParser(prog="train/preflight.py", description="Look at every node before training.")
    parser.add_argument("--config", default=str(DEFAULT), metavar="FILE", help="settings, as of train/main.py")
    parser.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="SECTION.KEY=VALUE", help="over the file's"
    )
    parser.add_argument("--run", metavar="NAME", help="name of the run's folder, which the nodes should share")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    options = parser.parse_args(arguments)
    place = find_place(os.environ)
    try:
        config = load(options.config, options.overrides, options.run)
        world = bring_together(place, os.environ)
    except UserError as error:
        if place.speaks:
            print(f"error: {error}", file=sys.stderr, flush=True)
        return USER_ERROR
    try:
        preflight(world, config, Path(config.run.folder) / str(config.run.name))
    except UserError:
        # Printed already, by rank 0; the others wait, or a launcher would end it before it spoke.
        time.sleep(0.0 if world.first else 1.0)
        end_at_once(USER_ERROR)
    part()
    return 0


if __name__ == "__main__":
    sys.exit(main())
