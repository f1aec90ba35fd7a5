"""The loss of a global batch: the mean over its supervised tokens, whatever ranks and packs they lie on."""

import math
from collections.abc import Iterable, Sequence

import numpy as np

IGNORED = -100


def count_labels(labels: np.ndarray) -> int:
    """Supervised tokens of a pack: labels[T] that are not ignored, the first excepted, which nothing predicts."""
    return int(np.count_nonzero(labels[1:] != IGNORED))


def backward_scale(world_size: int, global_labels: int) -> float:
    """What a pack's summed loss is multiplied by before backward.

    DeepSpeed averages gradients over the ranks; times world_size / global_labels that is the gradient of the mean over
    the supervised tokens of the whole global batch. A batch without any gives a gradient of 0.
    """
    return world_size / max(1, global_labels)


def mean_loss(sums: Iterable[Sequence[float]], labels: int) -> float:
    """The mean over `labels` tokens of per-pack sums, given by rank; correctly rounded, so the order is no matter."""
    return math.fsum(value for rank in sums for value in rank) / max(1, labels)
