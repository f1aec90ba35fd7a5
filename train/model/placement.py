"""Where image tokens go: the runs of −k in the token ids, read against the pictures."""

from collections.abc import Sequence

import numpy as np


def place_pictures(
    input_ids: np.ndarray, bounds: Sequence[int], lengths: Sequence[int]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Match the image positions of flattened ids with the pictures' tokens.

    Arguments: token ids int64 [T], in which −k stands for picture k of its sample; where samples begin and end
    [S + 1], ascending; the image tokens of each picture, sample after sample and in the order of k.
    Returns: positions int64 [P] and, beside each, the row among all pictures' tokens laid end to end; the rows are
    None where they are just 0 … P − 1. A picture that is shown twice has its rows twice.
    Raises ValueError where tags and pictures do not match, naming sample and picture.
    """
    positions = np.flatnonzero(input_ids < 0)
    numbers = -input_ids[positions]
    samples = np.searchsorted(np.asarray(bounds), positions, side="right") - 1
    in_sample = np.zeros(len(bounds) - 1, dtype=np.int64)
    np.maximum.at(in_sample, samples, numbers)
    if in_sample.sum() != len(lengths):
        found = ", ".join(f"{count} in sample {sample}" for sample, count in enumerate(in_sample) if count)
        raise ValueError(
            f"the token ids speak of {in_sample.sum()} pictures ({found or 'none'}) and {len(lengths)} are given; "
            "every picture needs its tag <|image_k|>, every tag its picture"
        )
    pictures = np.concatenate(([0], np.cumsum(in_sample)))[samples] + numbers - 1
    counts = np.bincount(pictures, minlength=len(lengths))
    wanted = np.asarray(lengths, dtype=np.int64)
    wrong = np.flatnonzero((counts == 0) | (counts % np.maximum(wanted, 1) != 0))
    if len(wrong):
        first = int(wrong[0])
        sample = int(np.searchsorted(np.cumsum(in_sample), first, side="right"))
        raise ValueError(
            f"sample {sample}, picture {first + 1 - int(np.cumsum(in_sample)[sample] - in_sample[sample])}: the token "
            f"ids hold {counts[first]} image tokens and its crops make {wanted[first]}; was the sequence cut inside a "
            "picture, or made with another num_crops or crop size?"
        )
    if np.array_equal(counts, wanted) and (np.diff(pictures) >= 0).all():
        return positions, None
    order = np.argsort(pictures, kind="stable")
    positions, pictures = positions[order], pictures[order]
    first_position = np.concatenate(([0], np.cumsum(counts)))[:-1]
    rank = np.arange(len(positions)) - first_position[pictures]
    starts = np.concatenate(([0], np.cumsum(wanted)))[:-1]
    return positions, starts[pictures] + rank % wanted[pictures]
