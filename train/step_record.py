"""A training step as a line of metrics.jsonl: what it held, what came out, and where its seconds went."""

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.distributed import World
from train.loss import count_labels
from train.pipeline.batch import Batch

GIB = 2**30


def memory_gib(world: World) -> float:
    """The most of the accelerator's memory that was used so far, or this process's memory now."""
    if world.device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(world.device) / GIB
    resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
    return resident_pages * 4096 / GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What a global batch holds, over all ranks."""

    label_tokens: int
    tokens: int
    pictures: int
    samples: int
    packs: int
    packs_without_labels: int
    """Of `packs`: they contribute nothing."""
    bad: int
    flops: int
    """Operations of forward and backward, see flops.Arithmetic."""

    @classmethod
    def of(cls, batches: Sequence[Batch], flops: int) -> "Counts":
        """Of one rank's share; empty packs count as nothing."""
        full = [batch for batch in batches if batch.keys]
        labels = [count_labels(batch.labels) for batch in full]
        return cls(
            label_tokens=sum(labels),
            tokens=sum(len(batch.input_ids) for batch in full),
            pictures=sum(len(batch.grids) for batch in full),
            samples=sum(len(batch.keys) for batch in full),
            packs=len(full),
            packs_without_labels=labels.count(0),
            bad=sum(len(batch.bad) for batch in batches),
            flops=flops,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a step came to."""

    loss: float
    rate: float
    rates: Mapping[str, float]
    """Of the parts that have one of their own."""
    norm: float | None
    """Of the gradient before clipping; None where the step was skipped."""
    seconds: float
    save_s: float
    """What saves held training up since the last step."""
    waited: Sequence[float]
    """Seconds that each rank waited for its packs."""
    computed: Sequence[float]
    """Seconds that each rank took for forward and backward."""
    spent: Mapping[str, float]
    """Seconds of all ranks' loader workers by what they went into."""
    memory_gib: float
    peak_flops: float | None
    """Operations a second of all ranks' devices; None where it is not known."""
    loss_scale: float | None
    """What the loss was multiplied by before backward; None where it was not."""
    overflow: bool
    """Whether the step was skipped because the gradient overflowed at that scale."""

    @property
    def slowest(self) -> int:
        """The rank that took longest for its data, forward and backward."""
        own = [a + b for a, b in zip(self.waited, self.computed, strict=True)]
        return own.index(max(own))

    @property
    def behind_s(self) -> float:
        """Seconds that the slowest rank took longer than the middle one."""
        own = [a + b for a, b in zip(self.waited, self.computed, strict=True)]
        return max(own) - statistics.median(own)


def step_line(step: int, steps: int, epoch: int, counts: Counts, outcome: Outcome) -> dict[str, Any]:
    """The line of one optimizer step; what differs from one run to the next stands under `time`."""
    waited = list(outcome.waited)
    speed = counts.flops / outcome.seconds
    return {
        "step": step,
        "steps": steps,
        "kind": "train",
        "epoch": epoch,
        "loss": outcome.loss if math.isfinite(outcome.loss) else None,
        "lr": outcome.rate,
        **{f"lr_{part}": rate for part, rate in outcome.rates.items()},
        "grad_norm": outcome.norm,
        **({} if outcome.loss_scale is None else {"loss_scale": outcome.loss_scale, "overflow": outcome.overflow}),
        **{name: getattr(counts, name) for name in Counts.__dataclass_fields__},
        "time": {
            "at": time.time(),
            "step_s": outcome.seconds,
            "data_wait_s": max(waited),
            "data_wait_rank": waited.index(max(waited)),
            **({"slowest_rank": outcome.slowest, "slowest_behind_s": outcome.behind_s} if len(waited) > 1 else {}),
            **{f"data_{name}_s": value for name, value in outcome.spent.items()},
            "tokens_per_s": counts.tokens / outcome.seconds,
            "pictures_per_s": counts.pictures / outcome.seconds,
            "flops_per_s": speed,
            **({"mfu": speed / outcome.peak_flops} if outcome.peak_flops else {}),
            "memory_gib": outcome.memory_gib,
            "save_s": outcome.save_s,
        },
    }
