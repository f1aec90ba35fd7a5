"""What is wrong with the nodes of a job, judged from what each said of itself. Pure: no torch, no files."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CLOCK_S = 1.0
ROOM_TEMPORARY = 100 << 20
ROOM_RUN = 1 << 30
# A link of a training; slower ones are faults whatever the others are. Of a slow card a twentieth of what it says.
LINK_FLOOR_MB_S = 50.0
LINK_SHARE = 20
SLOW_LINK = 0.5
SLOW_DEVICE = 0.7
FREE_DEVICE = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that is not as it should be."""

    node: str
    what: str
    remedy: str
    fault: bool = True
    """Whether a job should not begin like that; else it is only told."""

    def line(self) -> str:
        return f"{'fault' if self.fault else 'note '}  {self.node}: {self.what}; {self.remedy}"


def usual(values: Sequence[Any]) -> Any:
    """The value that most nodes have; the first node's where none leads."""
    counts = Counter(values)
    most = max(counts.values())
    return values[0] if counts[values[0]] == most else next(value for value in values if counts[value] == most)


def differing(nodes: Sequence[Mapping[str, Any]], key: str) -> list[tuple[str, str, Any, Any]]:
    """(node, name, its value, the usual value) of each entry of the dictionaries under `key` that is not the usual."""
    names = list(dict.fromkeys(name for node in nodes for name in node[key]))
    found = []
    for name in names:
        wanted = usual([node[key].get(name, "unset") for node in nodes])
        found += [
            (node["host"], name, node[key].get(name, "unset"), wanted)
            for node in nodes
            if node[key].get(name, "unset") != wanted
        ]
    return found


def of_software(nodes: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """Other versions, other variables, another driver."""
    found = [
        Finding(
            node=host,
            what=f"{name} is {value}, elsewhere {wanted}",
            remedy="have all nodes use one checkout"
            if name == "this program"
            else "have all nodes use one environment, or install it there from constraints.txt",
        )
        for host, name, value, wanted in differing(nodes, "versions")
    ]
    found += [
        Finding(
            node=host,
            what=f"{name}={value}, elsewhere {wanted}",
            remedy="set it for all nodes: .deepspeed_env for a hostfile, launch/site.env under Slurm",
            fault=name.startswith(("NCCL_", "DS_")),
        )
        for host, name, value, wanted in differing(nodes, "variables")
    ]
    driver = usual([node["driver"] for node in nodes])
    return found + [
        Finding(
            node=node["host"],
            what=f"the GPU driver is {node['driver'] or 'missing'}, elsewhere {driver or 'missing'}",
            remedy="leave this node out until it has the others' driver",
        )
        for node in nodes
        if node["driver"] != driver
    ]


def of_files(nodes: Sequence[Mapping[str, Any]], run: str) -> list[Finding]:
    """Shards, model, room, the shared folder."""
    found = []
    model = usual([node["model"] for node in nodes])
    for node in nodes:
        host = node["host"]
        if node["shards"].startswith("error: "):
            remedy = "copy the shards there again, or have all nodes read one shared folder"
            found.append(Finding(node=host, what=node["shards"].removeprefix("error: "), remedy=remedy))
        if node["model"].startswith("error: ") or node["model"] != model:
            what = "its model folder is another one than elsewhere"
            if node["model"].startswith("error: "):
                what = node["model"].removeprefix("error: ")
            found.append(Finding(node=host, what=what, remedy="copy the model folder there again"))
        for path, free in node["room"].items():
            wanted = ROOM_TEMPORARY if path == node["temporary"] else ROOM_RUN
            if free < wanted:
                found.append(
                    Finding(
                        node=host,
                        what=f"{path} has {free / 1e6:,.0f} MB free, wanted are {wanted / 1e6:,.0f}",
                        remedy="free some, or set TMPDIR to another folder"
                        if path == node["temporary"]
                        else "free some, or set run.folder to another folder",
                    )
                )
        if not node["shared"]:
            remedy = "set run.folder to a folder that all nodes share: each rank writes its part of a checkpoint there"
            found.append(Finding(node=host, what=f"does not see what another node writes into {run}", remedy=remedy))
        elif not node["locks"]:
            remedy = "mount it with locks that hold for all nodes (Lustre: flock; NFS: no local_lock)"
            found.append(Finding(node=host, what=f"a lock in {run} holds on one node only", remedy=remedy, fault=False))
    return found


def of_clocks(nodes: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """Clocks that are not those of the others."""
    middle = statistics.median_low([node["clock_s"] for node in nodes])
    return [
        Finding(
            node=node["host"],
            what=f"its clock is {node['clock_s'] - middle:+.1f} s from the others'",
            remedy="set it by NTP (chronyc makestep, or timedatectl set-ntp true)",
        )
        for node in nodes
        if abs(node["clock_s"] - middle) > CLOCK_S
    ]


def of_links(nodes: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """Links that are slow for what they are, or beside the others; ports and interfaces that do not lead there."""
    found = [
        Finding(
            node=node["host"],
            what="cannot connect to a port that the first node opened",
            remedy="let the nodes of a job reach each other on all ports from 1024 up",
        )
        for node in nodes
        if not node["reaches_first"]
    ]
    if len(nodes) < 2:
        return found
    found += [
        Finding(
            node=node["host"],
            what="no network interface leads from it to the others",
            remedy="name one: GLOO_SOCKET_IFNAME=eth0, and NCCL_SOCKET_IFNAME with GPUs",
        )
        for node in nodes
        if not node["interface"]
    ]
    rates = [node["receives_mb_s"] for node in nodes]
    middle = statistics.median(rates)
    for place, node in enumerate(nodes):
        sender = nodes[place - 1]
        said = [one["nominal_mb_s"] for one in (sender, node) if one["nominal_mb_s"]]
        floor = min(LINK_FLOOR_MB_S, *(value / LINK_SHARE for value in said)) if said else LINK_FLOOR_MB_S
        rate = node["receives_mb_s"]
        if rate < floor or (len(nodes) > 2 and rate < SLOW_LINK * middle):
            beside = f"the others' median is {middle:,.0f}" if len(nodes) > 2 else f"at least {floor:,.0f} is expected"
            found.append(
                Finding(
                    node=sender["host"],
                    what=f"sends to {node['host']} at {rate:,.1f} MB/s ({sender['interface']}), {beside}",
                    remedy="look at its card, cable and port, choose another interface by GLOO_SOCKET_IFNAME and "
                    "NCCL_SOCKET_IFNAME, or leave it out",
                )
            )
    return found


def of_devices(nodes: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """GPUs that are fewer, slower, others, or taken."""
    found = []
    devices = [device for node in nodes for device in node["devices"]]
    name = usual([device["name"] for device in devices])
    middle = statistics.median([device["rate"] for device in devices])
    for node in nodes:
        for device in node["devices"]:
            who = f"{device['name']} {device['number']}"
            if device["name"] != name:
                what = f"rank {device['rank']} has a {device['name']}, most others a {name}"
                found.append(Finding(node=node["host"], what=what, remedy="all wait for the slowest", fault=False))
            elif device["rate"] < SLOW_DEVICE * middle:
                rate = f"{device['rate'] / 1e12:.2f} TFLOP/s, the median is {middle / 1e12:.2f}"
                remedy = "look at its temperature, clocks (nvidia-smi -q -d PERFORMANCE) and other programs"
                # On a CPU, ranks share cores, and what else runs there weighs more than the machine.
                on_gpu = device["total"] > 0
                found.append(Finding(node=node["host"], what=f"{who}: {rate}", remedy=remedy, fault=on_gpu))
            if device["total"] and device["free"] < FREE_DEVICE * device["total"]:
                what = f"{who} has {device['free'] / 2**30:.1f} of {device['total'] / 2**30:.1f} GiB free"
                remedy = "another program is on it (nvidia-smi); end it"
                found.append(Finding(node=node["host"], what=what, remedy=remedy, fault=False))
    return found


def findings(nodes: Sequence[Mapping[str, Any]], run: str) -> list[Finding]:
    """All that is wrong, faults first."""
    found = [*of_software(nodes), *of_files(nodes, run), *of_clocks(nodes), *of_links(nodes), *of_devices(nodes)]
    return sorted(found, key=lambda one: not one.fault)
