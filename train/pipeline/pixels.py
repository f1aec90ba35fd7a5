"""A picture's crops pixel by pixel as Pillow holds them, for the loader's workers."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from train.model.crops import cuts, on_canvas

WHITE = 0xFFFFFFFF


def canvas_pixels(picture: Image.Image, num_crops: int, crop_size: int, out: NDArray[np.uint8]) -> None:
    """As `canvas_crops`, pixel by pixel as Pillow holds them: copied as they lie, in a fifth of the time.

    Arguments: `out`: uint8 [rows * columns, crop_size, crop_size, 4]: red, green, blue, and a byte without a meaning.
    Raises ValueError for a picture that is too thin for its canvas, or for an `out` of another size.
    """
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
