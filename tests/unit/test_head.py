"""The loss of the output head: its value and gradients, and what memory they take."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from tests.factories.allocations import Allocations, loss_peak_bytes
from train.config_schema import ModelSection
from train.model.head import LabelHead

SIZES = 32_768, 3072, 32_064  # labels, and the published width and vocabulary


def in_pieces_of(labels: int) -> Callable[..., torch.Tensor]:
    """The loss taken so many labels at a time."""
    return lambda head, hidden, targets: head(hidden, targets, len(targets) // labels)


def test_allocations_count_what_lives_at_once() -> None:
    with Allocations() as allocations:
        first = torch.ones(1000)
        second = first + 1
        del first
        second.view(10, 100).mul_(2)
        third = second.sum()
    assert (allocations.peak_bytes, allocations.live_bytes) == (8000, 4000 + third.nbytes)


@pytest.mark.parametrize("chunks", [1, 3, 12, 20])
def test_the_loss_in_pieces_is_cross_entropy_and_so_are_its_gradients(chunks: int) -> None:
    torch.manual_seed(0)
    head = LabelHead(16, 50, bias=False, dtype=torch.float64)
    hidden, labels = torch.randn(12, 16, dtype=torch.float64), torch.randint(0, 50, (12,))
    found, wanted = (hidden.clone().requires_grad_() for _ in range(2))
    expected = F.cross_entropy(F.linear(wanted, head.weight), labels, reduction="sum")
    slope = torch.autograd.grad(expected / 7, (wanted, head.weight))
    loss = head(found, labels, chunks)
    (loss / 7).backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(found.grad, slope[0], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(head.weight.grad, slope[1], rtol=1e-5, atol=1e-7)


def test_a_second_backward_pass_is_refused() -> None:
    hidden = torch.randn(4, 8, requires_grad=True)
    loss = LabelHead(8, 10, bias=False)(hidden, torch.arange(4))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one backward pass"):
        loss.backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_the_loss_of_32k_tokens_takes_an_eighth_of_their_logits_at_most(dtype: torch.dtype) -> None:
    logits = SIZES[0] * SIZES[2] * torch.float32.itemsize
    assert loss_peak_bytes(LabelHead.__call__, SIZES, dtype) <= logits / 8
    assert (
        loss_peak_bytes(in_pieces_of(ModelSection.model_fields["labels_per_chunk"].default), SIZES, dtype) <= logits / 8
    )
    # The count itself is right: in one piece it finds the logits of all labels.
    assert loss_peak_bytes(in_pieces_of(SIZES[0]), SIZES, dtype) >= logits
