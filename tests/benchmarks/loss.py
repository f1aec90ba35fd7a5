"""The loss at the head in our pieces, by DeepSpeed's chunked cross entropy, and plainly: memory and time.

`python -m tests.benchmarks.loss`. Memory is counted at the published sizes without computing anything; time is taken on
one core at a small width. Liger's fused loss has kernels for GPUs alone and is not among them.
"""

import argparse
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from deepspeed.runtime.chunked_cross_entropy import chunked_cross_entropy
from torch import Tensor

from tests.benchmarks.figures import Figure, command, counted, of_rounds
from tests.benchmarks.matrix_rate import MatrixRate
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


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = argparse.ArgumentParser(prog="python -m tests.benchmarks.loss", description=__doc__)
    arguments.add_argument("--rounds", type=int, default=5, help="turns of each way (default: 5)")
    return arguments


def measure(options: argparse.Namespace) -> list[Figure]:
    """Most memory and milliseconds of the ways."""
    keep_to_one_core()
    peaks = {
        name: [loss_peak_bytes(way, PUBLISHED_SIZES, dtype) for dtype in (torch.float32, torch.bfloat16)]
        for name, way in WAYS.items()
    }
    tokens, width, vocabulary = TIMED_SIZES
    head = LabelHead(width, vocabulary, bias=False)
    hidden = torch.randn(tokens, width, requires_grad=True)
    labels = torch.randint(0, vocabulary, (tokens,))
    product = MatrixRate()
    ways: dict[str, Callable[[], object]] = {"product": product.run}
    for name, way in WAYS.items():
        ways[name] = lambda way=way: way(head, hidden, labels).backward()  # type: ignore[misc]
    times = in_turns(ways, options.rounds, clock=time.process_time)
    # The logits, and the gradients of both their factors.
    least = [product.seconds_for(6 * tokens * width * vocabulary, taken) for taken in times["product"].seconds]
    rows = [
        (name, *(f"{peak / 1e9:.2f}" for peak in peaks[name]), f"{times[name].median_s * 1e3:.0f}") for name in WAYS
    ]
    print_table(HEADER, rows)
    logits = PUBLISHED_SIZES[0] * vocabulary * 4
    print(f"All logits in float32: {logits / 1e9:.2f} GB. Beside inputs and gradients.")
    figures = []
    for place, dtype in enumerate(("float32", "bfloat16")):
        ours, theirs = (peaks[name][place] / 1e9 for name in ("ours", "DeepSpeed's"))
        memory = Figure(
            name=f"most memory of {PUBLISHED_SIZES[0]:,} labels in {dtype}, published sizes",
            value=ours,
            unit="GB",
            higher_is_better=False,
            baseline=counted("DeepSpeed's", ours, theirs, higher_is_better=False),
        )
        figures.append(memory.asking("an eighth of the float32 logits", peaks["ours"][place] <= logits / 8))
    figures.append(
        of_rounds(
            f"loss and gradients of {tokens:,} labels, width {width}, float32, one core",
            [taken * 1e3 for taken in times["ours"].seconds],
            "ms",
            higher_is_better=False,
            baseline=("DeepSpeed's", [taken * 1e3 for taken in times["DeepSpeed's"].seconds]),
            limit=("its products alone", [taken * 1e3 for taken in least]),
        )
    )
    return figures


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    return command(parser(), measure, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
