"""A picture's HD crops as bytes: resized, padded with white and cut. PIL and NumPy alone, for worker processes."""

import numpy as np
from PIL import Image

from data.geometry import canvas

WHITE = (255, 255, 255)


def canvas_crops(picture: Image.Image, num_crops: int, crop_size: int = 336) -> tuple[np.ndarray, tuple[int, int]]:
    """Resize a picture onto its canvas and cut that into crops, as the published processor does.

    Arguments: a PIL picture of any mode (an EXIF orientation is not looked at); the largest number of crops; pixels a
    side of a crop.
    Returns: the crops, uint8 [rows * columns, 3, crop_size, crop_size], row by row from the top left; (rows, columns).
    Neither normalised nor with the global view: the model makes both from these bytes.
    Raises ValueError for a picture that is too thin for its canvas.
    """
    if not isinstance(picture, Image.Image):
        raise TypeError(f"a picture must be a PIL image, found {type(picture).__name__}")
    place = canvas(picture.width, picture.height, num_crops, crop_size)
    rgb = picture if picture.mode == "RGB" else picture.convert("RGB")
    if place.transposed:
        # Pillow's two resize passes round in between, so a tall picture is resized lying on its side.
        rgb = rgb.transpose(Image.Transpose.TRANSPOSE)
        rgb = rgb.resize((place.resized_height, place.resized_width), Image.Resampling.BILINEAR)
        rgb = rgb.transpose(Image.Transpose.TRANSPOSE)
    else:
        rgb = rgb.resize((place.resized_width, place.resized_height), Image.Resampling.BILINEAR)
    if rgb.size != (place.width, place.height):
        padded = Image.new("RGB", (place.width, place.height), WHITE)
        padded.paste(rgb, (place.left, place.top))
        rgb = padded
    pixels = np.asarray(rgb).reshape(place.rows, crop_size, place.columns, crop_size, 3)
    crops = np.ascontiguousarray(pixels.transpose(0, 2, 4, 1, 3))
    return crops.reshape(place.rows * place.columns, 3, crop_size, crop_size), (place.rows, place.columns)


def tower_crops(rows: int, columns: int) -> int:
    """Crops that the vision tower sees of a picture of this grid: its own and, if it has several, the global view."""
    return rows * columns + (rows * columns > 1)
