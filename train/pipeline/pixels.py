"""A picture's crops pixel by pixel as Pillow holds them, for the loader's workers."""

from collections.abc import Callable
from functools import cache

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from data.geometry import Canvas, canvas
from train.model.crops import cuts, on_canvas
from train.pipeline.events import say

WHITE = 0xFFFFFFFF
MOST_DOWN = 2
"""Times a side may shrink and still be resized by the compiled way."""
Resample = Callable[[NDArray[np.uint32], Canvas, NDArray[np.uint8]], None]


def canvas_pixels(picture: Image.Image, num_crops: int, crop_size: int, out: NDArray[np.uint8]) -> None:
    """As `canvas_crops`, pixel by pixel as Pillow holds them: the same colours in half the time or less.

    Arguments: `out`: uint8 [rows * columns, crop_size, crop_size, 4]: red, green, blue, and a byte without a meaning.
    Raises ValueError for a picture that is too thin for its canvas, or for an `out` of another size.
    """
    rgb = picture if picture.mode == "RGB" else picture.convert("RGB")
    place = canvas(rgb.width, rgb.height, num_crops, crop_size)
    crops = out.reshape((place.rows * place.columns, crop_size, crop_size, 4), copy=False)
    resample = compiled_resample() if suits(rgb.width, rgb.height, place) else None
    if resample:
        resample(_pixels(rgb), place, crops)
    else:
        by_pillow(rgb, num_crops, crops)


def suits(width: int, height: int, place: Canvas) -> bool:
    """Whether a picture of this size is resized sooner by the compiled way.

    So it is along both sides, and down to no less than half: a side that stays as it is costs Pillow nothing, and from
    many pixels to one its passes are as quick.
    """
    wide, high = width / place.resized_width, height / place.resized_height
    return 1 not in (wide, high) and max(wide, high) <= MOST_DOWN


def by_pillow(picture: Image.Image, num_crops: int, out: NDArray[np.uint8]) -> None:
    """As `canvas_pixels`, by Pillow's own resizing, copied as its pixels lie; crop_size is that of `out`."""
    crop_size = out.shape[1]
    rgb, place = on_canvas(picture, num_crops, crop_size)
    # A pixel is one number here: four bytes are moved at once.
    crops = out.reshape((place.rows, place.columns, crop_size, crop_size, 4), copy=False).view(np.uint32)[..., 0]
    down, across = cuts(rgb, place, crop_size)
    pixels = _pixels(rgb)
    for row, (rows, in_row) in enumerate(down):
        for column, (columns, in_column) in enumerate(across):
            part, crop = pixels[rows, columns], crops[row, column]
            crop[in_row, in_column] = part
            if part.shape != crop.shape:
                _whiten_around(crop, in_row, in_column)


@cache
def compiled_resample() -> Resample | None:
    """The compiled resampling; None where it cannot be had or gives one bit that Pillow does not, which is told."""
    try:
        from train.pipeline.resample import resample

        same = all(_agrees(resample, width, height) for width, height in ((40, 31), (31, 40), (90, 75), (75, 90)))
        reason = "" if same else "it does not give what Pillow gives"
    except Exception as error:  # whatever a compiler may say: the crops are had without it
        reason = f"{type(error).__name__}: {error}"
    if not reason:
        return resample
    say(f"data: pictures are resized by Pillow, which takes longer than the compiled way: {reason}")
    return None


def _agrees(resample: Resample, width: int, height: int) -> bool:
    """Whether a noisy picture's crops are Pillow's."""
    noise = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    picture = Image.fromarray(noise)
    place = canvas(width, height, 4, 28)
    own, wanted = (np.empty((place.rows * place.columns, 28, 28, 4), np.uint8) for _ in range(2))
    resample(_pixels(picture), place, own)
    by_pillow(picture, 4, wanted)
    return np.array_equal(own[..., :3], wanted[..., :3])


def _whiten_around(crop: NDArray[np.uint32], rows: slice, columns: slice) -> None:
    """Fill what lies around a part of a crop [size, size], and nothing of the part."""
    crop[: rows.start] = WHITE
    crop[rows.stop :] = WHITE
    crop[rows, : columns.start] = WHITE
    crop[rows, columns.stop :] = WHITE


def _pixels(rgb: Image.Image) -> NDArray[np.uint32]:
    """Pillow's own memory, [height, width]; a copy where that is in several pieces."""
    try:
        memory = pa.array(rgb).buffers()[-1]
    except ValueError:
        memory = rgb.tobytes("raw", "RGBX")
    return np.frombuffer(memory, np.uint32).reshape(rgb.height, rgb.width)
