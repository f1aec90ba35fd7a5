"""The least time of kernels, counted on the meta device."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.benchmarks.bound import measure, parser
from tests.benchmarks.kernel_costs import KernelCosts, as_one_kernel, bytes_of, flash_attention

META = torch.device("meta")
RATE, BANDWIDTH = 1e6, 1e3


def made(*shape: int, **options: Any) -> torch.Tensor:
    """A bfloat16 tensor without values."""
    return torch.empty(*shape, device=META, dtype=torch.bfloat16, **options)


def test_a_product_takes_its_operations_or_its_bytes_whichever_is_longer() -> None:
    left, right = made(10, 20), made(20, 30)
    for rate, wanted in ((1.0, 2 * 10 * 20 * 30), (1e12, 2 * (10 * 20 + 20 * 30 + 10 * 30) / BANDWIDTH)):
        costs = KernelCosts(rate, BANDWIDTH)
        with costs:
            left @ right
        assert dict(costs.seconds) == {"mm": pytest.approx(wanted)}


def test_views_and_bare_memory_cost_nothing_and_what_is_written_over_is_read_too() -> None:
    one = made(4, 8)
    costs = KernelCosts(RATE, BANDWIDTH)
    with costs:
        one.view(8, 4).t()[2:].unsqueeze(0)
        torch.empty_like(one)
        one.split(2)
        torch.zeros(5) + 1  # the host's
        one.add_(1)
    assert dict(costs.seconds) == {"add_": pytest.approx(2 * one.nbytes / BANDWIDTH)}
    assert bytes_of(one[:1].expand(100, 8)) == 16


def test_a_function_as_one_kernel_has_its_values_and_gradients_and_counts_twice() -> None:
    def gated(left: torch.Tensor, scale: float, right: torch.Tensor) -> torch.Tensor:
        return F.silu(left) * scale * right

    costs = KernelCosts(RATE, BANDWIDTH)
    torch.manual_seed(0)
    left, right = (torch.randn(3, 5, requires_grad=True) for _ in "ab")
    slope = torch.randn(3, 5)
    wanted = torch.autograd.grad(gated(left, 2.0, right), (left, right), slope)
    one = as_one_kernel(costs, "gated", gated, lambda *inputs: (0.0, 0.0))
    with costs:
        found = torch.autograd.grad(one(left, 2.0, right), (left, right), slope)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    # Two read and one written; then two and the slope read, two slopes written.
    assert costs.seconds == {
        "gated": pytest.approx(3 * left.nbytes / BANDWIDTH),
        "gated backward": pytest.approx(5 * left.nbytes / BANDWIDTH),
    }


def test_attention_counts_as_a_fused_kernel_half_of_it_where_it_is_causal() -> None:
    plain = F.scaled_dot_product_attention
    query = made(1, 2, 100, 8, requires_grad=True)
    for causal, share in ((False, 1.0), (True, 0.5)):
        costs = KernelCosts(RATE, 1e30)
        with flash_attention(costs), costs:
            F.scaled_dot_product_attention(query, query, query, is_causal=causal).backward(made(1, 2, 100, 8))
        forward = share * 4 * 2 * 100 * 100 * 8 / RATE
        assert costs.seconds["attention"] == pytest.approx(forward)
        assert costs.seconds["attention backward"] == pytest.approx(2.5 * forward)
    assert F.scaled_dot_product_attention is plain


@pytest.mark.soak
def test_fused_kernels_leave_room_for_half_of_the_rate() -> None:
    figures = measure(parser().parse_args([]))
    asked = [figure for figure in figures if figure.asked]
    assert len(figures) == 8
    assert len(asked) == 4
    assert all(figure.holds for figure in asked)
