"""A picture's HD crops as bytes: resized, padded with white and cut. PIL and NumPy alone, for worker processes."""

import numpy as np
from PIL import Image

from data.geometry import Canvas, canvas

WHITE = 255


def canvas_crops(
    picture: Image.Image, num_crops: int, crop_size: int = 336, out: np.ndarray | None = None
) -> tuple[np.ndarray, tuple[int, int]]:
    """Resize a picture onto its canvas and cut that into crops, as the published processor does.

    Arguments: a PIL picture of any mode (an EXIF orientation is not looked at); the largest number of crops; pixels a
    side of a crop; where the crops are written, None for memory of their own.
    Returns: the crops, uint8 [rows * columns, 3, crop_size, crop_size], row by row from the top left; (rows, columns).
    Neither normalised nor with the global view: the model makes both from these bytes.
    Raises ValueError for a picture that is too thin for its canvas.
    """
    if not isinstance(picture, Image.Image):
        raise TypeError(f"a picture must be a PIL image, found {type(picture).__name__}")
    place = canvas(picture.width, picture.height, num_crops, crop_size)
    rgb = resized(picture if picture.mode == "RGB" else picture.convert("RGB"), place)
    shape = (place.rows, place.columns, 3, crop_size, crop_size)
    crops = np.empty(shape, np.uint8) if out is None else out.reshape(shape, copy=False)
    down = _overlaps(place.top, rgb.height, crop_size, place.rows)
    across = _overlaps(place.left, rgb.width, crop_size, place.columns)
    for number, band in enumerate("RGB"):
        # Pillow takes one band out of its pixels several times quicker than NumPy turns [..., 3] into [3, ...].
        pixels = np.frombuffer(rgb.tobytes("raw", band), np.uint8).reshape(rgb.height, rgb.width)
        for row, (rows, in_row) in enumerate(down):
            for column, (columns, in_column) in enumerate(across):
                part, crop = pixels[rows, columns], crops[row, column, number]
                if part.shape != crop.shape:
                    crop.fill(WHITE)
                crop[in_row, in_column] = part
    return crops.reshape(-1, 3, crop_size, crop_size), (place.rows, place.columns)


def _overlaps(before: int, length: int, size: int, count: int) -> list[tuple[slice, slice]]:
    """Where `count` crops of a side of `size` and a picture of a side of `length`, `before` pixels in, overlap.

    Returns: for each crop the part of the picture, and the same part as the crop counts.
    """
    starts = [max(number * size - before, 0) for number in range(count)]
    ends = [min((number + 1) * size - before, length) for number in range(count)]
    shifts = [before - number * size for number in range(count)]
    return [
        (slice(start, end), slice(start + shift, end + shift))
        for start, end, shift in zip(starts, ends, shifts, strict=True)
    ]


def resized(rgb: Image.Image, place: Canvas) -> Image.Image:
    """An RGB picture at its size on the canvas, bars left out.

    Pillow resizes along the width, rounds, and resizes along the height. A tall picture is published as resized lying
    on its side: along its height first. Two calls that each change one side do that without turning it twice.
    """
    end = (place.resized_width, place.resized_height)
    for size in ((rgb.width, end[1]), end) if place.transposed else (end,):
        if rgb.size != size:
            rgb = rgb.resize(size, Image.Resampling.BILINEAR)
    return rgb


def tower_crops(rows: int, columns: int) -> int:
    """Crops that the vision tower sees of a picture of this grid: its own and, if it has several, the global view."""
    return rows * columns + (rows * columns > 1)
