"""A picture's size → its canvas, its grid of crops and its number of image tokens (the published processor's rules)."""

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

IntOrInts = TypeVar("IntOrInts", int, NDArray[np.int64])


@dataclass(frozen=True, slots=True, kw_only=True)
class Canvas:
    """Where a picture comes to lie; all in pixels and in the picture's own orientation."""

    width: int
    """Padded to whole crops."""
    height: int
    resized_width: int
    resized_height: int
    left: int
    """White columns before the picture (only beside a tall one)."""
    top: int
    """White rows above it (only around a wide one)."""
    rows: int
    """Of crops."""
    columns: int
    transposed: bool
    """A tall picture is resized lying on its side."""


def canvas(width: int, height: int, num_crops: int, crop_size: int = 336) -> Canvas:
    """Lay out a picture as the published image processor does.

    Arguments: the picture's size in pixels; the largest number of crops; pixels a side of a crop.
    Raises ValueError for a size below 1 and for a picture so thin that nothing is left of its shorter side.
    """
    if min(width, height, num_crops, crop_size) < 1:
        raise ValueError(f"sizes must be at least 1: {width}×{height}, {num_crops} crops of {crop_size}")
    transposed = width < height
    long, short = max(width, height), min(width, height)
    # Float division as in the published code: exact fractions would round otherwise where the quotient is not exact.
    ratio = long / short
    scale = 1
    while (scale + 1) * math.ceil((scale + 1) / ratio) <= num_crops:
        scale += 1
    resized_long = crop_size * scale
    resized_short = int(resized_long / ratio)
    if resized_short == 0:
        raise ValueError(_too_thin(width, height, num_crops, crop_size))
    across = math.ceil(resized_short / crop_size)
    before = (across * crop_size - resized_short) // 2
    if transposed:
        return Canvas(
            width=across * crop_size,
            height=resized_long,
            resized_width=resized_short,
            resized_height=resized_long,
            left=before,
            top=0,
            rows=scale,
            columns=across,
            transposed=True,
        )
    return Canvas(
        width=resized_long,
        height=across * crop_size,
        resized_width=resized_long,
        resized_height=resized_short,
        left=0,
        top=before,
        rows=across,
        columns=scale,
        transposed=False,
    )


def image_tokens(rows: IntOrInts, columns: IntOrInts, tokens_per_side: int = 12) -> IntOrInts:
    """Image tokens of a picture of rows × columns crops, numbers or arrays of them.

    `tokens_per_side` is of one crop: 12 for crops of 336 pixels, patches of 14, merged 2×2.
    """
    side = tokens_per_side
    return side * side * (rows * columns + 1) + 1 + side * (rows + 1)


def grids(sizes: NDArray[np.integer], num_crops: int, crop_size: int = 336) -> NDArray[np.int64]:
    """The crop grids of many pictures at once; equals `canvas` for each.

    Arguments: sizes [pictures, 2] (width, height) in pixels.
    Returns: int64 [pictures, 2] (rows, columns).
    Raises ValueError for the first picture that has no canvas.
    """
    sizes = np.asarray(sizes, np.int64).reshape(-1, 2)
    if sizes.size and (sizes.min() < 1 or min(num_crops, crop_size) < 1):
        raise ValueError(f"sizes must be at least 1: found {sizes.min()}, {num_crops} crops of {crop_size}")
    ratio = sizes.max(axis=1) / sizes.min(axis=1)
    scale = np.ones(len(sizes), np.int64)
    for larger in range(2, num_crops + 1):
        scale[larger * np.ceil(larger / ratio) <= num_crops] = larger
    resized_short = (crop_size * scale / ratio).astype(np.int64)
    if (resized_short == 0).any():
        width, height = sizes[int(np.argmin(resized_short))].tolist()
        raise ValueError(_too_thin(width, height, num_crops, crop_size))
    across = -(-resized_short // crop_size)
    tall = sizes[:, 0] < sizes[:, 1]
    return np.stack([np.where(tall, scale, across), np.where(tall, across, scale)], axis=1)


def _too_thin(width: int, height: int, num_crops: int, crop_size: int) -> str:
    return (
        f"a picture of {width}×{height} is too thin: resized for {num_crops} crops of {crop_size} pixels nothing is "
        "left of its shorter side; leave it out or cut it"
    )
