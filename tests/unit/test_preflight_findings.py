"""What a preflight finds in what the nodes said of themselves."""

import copy
from typing import Any

import pytest

from train.preflight_findings import findings, usual


def sound(count: int) -> list[dict[str, Any]]:
    """Nodes that are alike."""
    device = {"rank": 0, "name": "GPU", "number": "0", "free": 80 << 30, "total": 80 << 30, "rate": 6e14}
    node: dict[str, Any] = {
        "versions": {"torch": "2", "python": "3.12"},
        "variables": {"NCCL_DEBUG": "WARN"},
        "driver": "570",
        "memory": 1 << 38,
        "room": {"runs/a": 1 << 40, "/tmp": 1 << 33},
        "temporary": "/tmp",
        "model": "abc",
        "shards": "8 of 8",
        "shared": True,
        "locks": True,
        "interface": "ib0",
        "nominal_mb_s": 25_000.0,
        "receives_mb_s": 3000.0,
        "clock_s": 0.01,
        "reaches_first": True,
        "devices": [device, device | {"rank": 1, "number": "1"}],
    }
    return [copy.deepcopy(node) | {"host": f"n{place}"} for place in range(count)]


def test_nodes_that_are_alike_have_no_findings() -> None:
    assert findings(sound(4), "runs/a") == []
    assert findings(sound(1), "runs/a") == []


@pytest.mark.parametrize(
    ("change", "said", "fault"),
    [
        ({"versions": {"torch": "1", "python": "3.12"}}, "torch is 1, elsewhere 2", True),
        ({"variables": {}}, "NCCL_DEBUG=unset, elsewhere WARN", True),
        ({"variables": {"NCCL_DEBUG": "WARN", "TMPDIR": "/x"}}, "TMPDIR=/x, elsewhere unset", False),
        ({"driver": ""}, "the GPU driver is missing, elsewhere 570", True),
        ({"room": {"runs/a": 1 << 40, "/tmp": 5 << 20}}, "/tmp has 5 MB free", True),
        ({"room": {"runs/a": 1 << 20, "/tmp": 1 << 33}}, "runs/a has 1 MB free", True),
        ({"model": "abd"}, "its model folder is another one", True),
        ({"shards": "error: x.tar has another content"}, "x.tar has another content", True),
        ({"shared": False}, "does not see what another node writes", True),
        ({"locks": False}, "a lock in runs/a holds on one node only", False),
        ({"interface": ""}, "no network interface leads", True),
        ({"clock_s": -4.0}, "its clock is -4.0 s from the others'", True),
        ({"reaches_first": False}, "cannot connect to a port", True),
    ],
)
def test_the_node_that_is_not_like_the_others_is_named(change: dict[str, Any], said: str, fault: bool) -> None:
    nodes = sound(3)
    nodes[2] |= change
    found = findings(nodes, "runs/a")
    assert [(one.node, one.fault) for one in found] == [("n2", fault)]
    assert said in found[0].what
    assert found[0].remedy


@pytest.mark.parametrize(("count", "rate"), [(2, 40.0), (3, 1000.0)])
def test_a_slow_link_is_laid_to_the_node_that_sends(count: int, rate: float) -> None:
    nodes = sound(count)
    nodes[0]["receives_mb_s"] = rate
    found = findings(nodes, "runs/a")
    assert [one.node for one in found] == [f"n{count - 1}"]
    assert f"sends to n0 at {rate:,.1f} MB/s (ib0)" in found[0].what


def test_a_slow_and_a_taken_gpu_are_told() -> None:
    nodes = sound(2)
    nodes[1]["devices"] = [
        nodes[1]["devices"][0] | {"rate": 3e14},
        nodes[1]["devices"][1] | {"free": 40 << 30},
    ]
    slow, taken = findings(nodes, "runs/a")
    assert (slow.node, slow.fault) == ("n1", True)
    assert "GPU 0: 300.00 TFLOP/s, the median is 600.00" in slow.what
    assert (taken.node, taken.fault) == ("n1", False)
    assert "GPU 1 has 40.0 of 80.0 GiB free" in taken.what


def test_the_usual_value_is_the_most_frequent_and_the_first_in_a_draw() -> None:
    assert usual(["a", "b", "b"]) == "b"
    assert usual(["a", "b"]) == "a"
