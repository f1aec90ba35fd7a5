"""A picture's crops for the loader's workers: compiled where that is quicker, Pillow's to the last bit."""

from collections.abc import Callable
from functools import cache

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from data.geometry import Canvas, canvas
from train.model.crops import canvas_crops, resized
from train.pipeline.events import say

MOST_DOWN = 2
"""Times a side may shrink and still be resized by the compiled way."""
Resample = Callable[[NDArray[np.uint32], Canvas, NDArray[np.uint8]], None]


def fill_crops(picture: Image.Image, num_crops: int, crop_size: int, out: NDArray[np.uint8]) -> None:
    """The crops of `canvas_crops`, in half the time.

    Arguments: a picture of any mode; the largest number of crops; pixels a side of a crop; where the crops are written:
    uint8 [rows * columns, 3, crop_size, crop_size].
    Raises ValueError for a picture that is too thin for its canvas, or for an `out` of another size.
    """
    place = canvas(picture.width, picture.height, num_crops, crop_size)
    crops = out.reshape((place.rows * place.columns, 3, crop_size, crop_size), copy=False)
    resample = compiled_resample()
    if resample is None:
        canvas_crops(picture, num_crops, crop_size, crops)
        return
    rgb = picture if picture.mode == "RGB" else picture.convert("RGB")
    if not suits(rgb.width, rgb.height, place):
        rgb = resized(rgb, place)
    resample(_pixels(rgb), place, crops)


def suits(width: int, height: int, place: Canvas) -> bool:
    """Whether a picture of this size is resized sooner by the compiled way.

    So it is along both sides, and down to no less than half: a side that stays as it is costs Pillow nothing, and from
    many pixels to one its passes are as quick.
    """
    wide, high = width / place.resized_width, height / place.resized_height
    return 1 not in (wide, high) and max(wide, high) <= MOST_DOWN


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
    picture = Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8))
    wanted, _ = canvas_crops(picture, 4, 28)
    place, own = canvas(width, height, 4, 28), np.empty_like(wanted)
    resample(_pixels(picture), place, own)
    return np.array_equal(own, wanted)


def _pixels(rgb: Image.Image) -> NDArray[np.uint32]:
    """Pillow's own memory, [height, width]; a copy where that is in several pieces."""
    try:
        memory = pa.array(rgb).buffers()[-1]
    except ValueError:
        memory = rgb.tobytes("raw", "RGBX")
    return np.frombuffer(memory, np.uint32).reshape(rgb.height, rgb.width)
