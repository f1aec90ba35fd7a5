"""The loss of a global batch as a mean over its supervised tokens."""

import numpy as np
import pytest

from train.loss import backward_scale, count_labels, mean_loss


def test_labels_are_counted_without_ignored_ones_and_the_first() -> None:
    assert count_labels(np.array([7, -100, 3, 4, -100])) == 2
    assert count_labels(np.array([-100])) == 0


def test_the_average_over_ranks_of_scaled_sums_is_the_mean_over_all_tokens() -> None:
    sums, labels = [6.0, 1.0, 0.0], 4 + 1 + 0
    gradients = [value * backward_scale(3, labels) for value in sums]
    assert sum(gradients) / 3 == pytest.approx(7.0 / 5)


def test_a_batch_without_labels_has_a_loss_of_zero() -> None:
    assert backward_scale(2, 0) * 0.0 == 0.0
    assert mean_loss([[0.0], [0.0]], 0) == 0.0


def test_the_mean_does_not_depend_on_which_rank_has_which_pack() -> None:
    packs = [0.1, 1e16, -1e16, 0.3, 0.2]
    assert mean_loss([packs], 3) == mean_loss([packs[3:], packs[:3]], 3) == mean_loss([packs[::-1]], 3)
