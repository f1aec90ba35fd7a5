"""The loss at the head in our pieces, by DeepSpeed's chunked cross entropy, and plainly: memory and time.

`python -m tests.benchmarks.loss`. Memory is counted at the published sizes without computing anything; time is taken on
one core at a small width. Liger's fused loss has kernels for GPUs alone and is not among them.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from deepspeed.runtime.chunked_cross_entropy import chunked_cross_entropy
from torch import Tensor

from tests.benchmarks.pairs import in_turns, keep_to_one_core, print_table
from tests.factories.allocations import loss_peak_bytes
from train.model.head import LabelHead

PUBLISHED_SIZES = 32_768, 3072, 32_064
TIMED_SIZES = 1024, 256, 32_064
HEADER = ("loss", "float32, GB", "bfloat16, GB", "milliseconds")


def plainly(head: LabelHead, hidden: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of logits in float32."""
    return F.cross_entropy(head(hidden).float(), labels, reduction="sum")


def by_deepspeed(head: LabelHead, hidden: Tensor, labels: Tensor) -> Tensor:
    """DeepSpeed's, whose input is all logits."""
    loss: Tensor = chunked_cross_entropy(head(hidden), labels, reduction="sum")
    return loss


WAYS: dict[str, Callable[[LabelHead, Tensor, Tensor], Tensor]] = {
    "ours": LabelHead.__call__,
    "DeepSpeed's": by_deepspeed,
    "plain": plainly,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns 1 if ours takes more than an eighth of the logits."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.loss", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each way (default: 5)")
    options = parser.parse_args(arguments)
    keep_to_one_core()
    peaks = {
        name: [loss_peak_bytes(way, PUBLISHED_SIZES, dtype) for dtype in (torch.float32, torch.bfloat16)]
        for name, way in WAYS.items()
    }
    tokens, width, vocabulary = TIMED_SIZES
    head = LabelHead(width, vocabulary, bias=False)
    hidden = torch.randn(tokens, width, requires_grad=True)
    labels = torch.randint(0, vocabulary, (tokens,))
    times = in_turns(
        {name: lambda way=way: way(head, hidden, labels).backward() for name, way in WAYS.items()},
        options.rounds,
        clock=time.process_time,
    )
    rows = [
        (name, *(f"{peak / 1e9:.2f}" for peak in peaks[name]), f"{times[name].median_s * 1e3:.0f}") for name in WAYS
    ]
    print_table(HEADER, rows)
    logits = PUBLISHED_SIZES[0] * vocabulary * 4
    print(f"All logits in float32: {logits / 1e9:.2f} GB. Beside inputs and gradients.")
    if max(peaks["ours"]) <= logits / 8:
        return 0
    print("missed: ours takes more than an eighth of the logits", file=sys.stderr)
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
