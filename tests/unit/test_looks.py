"""Likenesses and hashes: what they are of a picture, whatever pictures are looked at beside it."""

import numpy as np
import pytest

from data.looks import LOOK_BYTES, PATCHES, SIDE, Small, look_at, look_at_all

RANDOM = np.random.default_rng(0)


def small(height: int, width: int, colour: bool = True, missing: float = 0.0) -> Small:
    shape = (height, width, 3) if colour else (height, width)
    return Small(RANDOM.integers(0, 256, shape, dtype=np.uint8), (width - missing, height - missing))


def test_pictures_of_all_sizes_together_look_as_each_alone() -> None:
    sizes = [(1, 1), (67, 50), (50, 67), (67, 50), (3, 200), (300, 250), (12, 12)]
    smalls = [small(*size, colour, missing) for size in sizes for colour in (True, False) for missing in (0.0, 0.4)]
    assert look_at_all(smalls) == [look_at(one) for one in smalls]
    assert look_at_all([]) == []


@pytest.mark.parametrize("times", [1, 2, 5])
def test_a_likeness_is_the_means_of_the_pictures_parts(times: int) -> None:
    parts = RANDOM.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    pixels = parts.repeat(times, axis=0).repeat(times, axis=1)
    _, look = look_at(Small(pixels, (SIDE * times, SIDE * times)))
    assert len(look) == LOOK_BYTES
    values = np.frombuffer(look, np.uint8).astype(np.float64)
    grey = (parts @ np.array([0.299, 0.587, 0.114])).ravel()
    patch = SIDE // PATCHES
    patches = parts.reshape(PATCHES, patch, PATCHES, patch, 3).mean((1, 3)).ravel()
    # The weights of a mean are whole numbers of a 4096th.
    assert np.abs(values - np.concatenate([grey, patches])).max() < 0.6


def test_a_hash_tells_the_frequencies_above_the_median() -> None:
    hashes = [look_at(small(64, 64))[0] for _ in range(8)]
    assert {one.bit_count() for one in hashes} == {32}
    assert len(set(hashes)) == 8


def test_noise_of_sums_turns_no_bit_of_a_flat_picture() -> None:
    flat = [look_at(Small(np.full((67, 50, 3), level, np.uint8), (50, 67)))[0] for level in (1, 77, 254)]
    assert set(flat) == {1 << 63}
