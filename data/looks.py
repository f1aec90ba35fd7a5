"""What a picture looks like, in a few bytes: a perceptual hash, and a small likeness by which copies are told apart."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 12
"""Of the likeness in grey, in pixels."""
PATCHES = 4
"""Of the likeness in colour, in pixels a side."""
LOOK_BYTES = SIDE * SIDE + PATCHES * PATCHES * 3
_HASHED = 32
_STRIP_PIXELS = 2_000_000


def _cosines(count: int, side: int) -> NDArray[np.float64]:
    """The lowest `count` rows of the DCT-II over `side` points, [count, side]."""
    cosines: NDArray[np.float64] = np.cos(np.pi / side * np.arange(count)[:, None] * (np.arange(side) + 0.5)[None, :])
    return cosines


_LOWEST = _cosines(8, _HASHED)


@dataclass(frozen=True, slots=True)
class Small:
    """A picture made small; its last row and column may be of a fraction of the pixels that others are of."""

    picture: Image.Image
    """In RGB or grey."""
    extent: tuple[float, float]
    """Width and height in its own pixels, without what is missing of the last ones."""


def reduced(picture: Image.Image) -> Small:
    """A picture made small by a whole factor, what is transparent laid on white.

    About five times quicker than to hash it whole, and only coarse shapes are looked at. Done strip by strip, as a
    large picture's conversion would take as much memory as the picture.
    """
    factor = max(1, min(picture.size) // 64)
    extent = (picture.width / factor, picture.height / factor)
    rows = max(1, _STRIP_PIXELS // (picture.width * factor)) * factor
    if rows >= picture.height:
        return Small(_plain(picture, factor), extent)
    strips = [
        _plain(picture.crop((0, top, picture.width, min(top + rows, picture.height))), factor)
        for top in range(0, picture.height, rows)
    ]
    whole = Image.new(strips[0].mode, (strips[0].width, sum(strip.height for strip in strips)))
    top = 0
    for strip in strips:
        whole.paste(strip, (0, top))
        top += strip.height
    return Small(whole, extent)


def _plain(picture: Image.Image, factor: int) -> Image.Image:
    if picture.mode.startswith("I;16"):
        picture = Image.fromarray((np.asarray(picture).astype(np.uint16) >> 8).astype(np.uint8))
    elif picture.mode in ("I", "F"):
        picture = Image.fromarray(np.clip(np.asarray(picture), 0, 255).astype(np.uint8))
    elif picture.mode in ("P", "PA", "1"):
        picture = picture.convert("RGBA" if "transparency" in picture.info or picture.mode == "PA" else "RGB")
    elif picture.mode not in ("L", "RGB", "RGBA"):
        picture = picture.convert("RGBA" if picture.mode in ("LA", "La", "RGBa") else "RGB")
    if picture.mode == "RGBA":
        ground = Image.new("RGB", picture.size, "white")
        ground.paste(picture, mask=picture.getchannel("A"))
        picture = ground
    return picture.reduce(factor) if factor > 1 else picture


def look_at(small: Small) -> tuple[int, bytes]:
    """The hash and the likeness of a picture.

    Returns: pHash, 64 bits unsigned: which of the 8×8 lowest frequencies of the picture in grey at 32×32 exceed their
    median; LOOK_BYTES bytes: the picture in grey at 12×12, then in RGB at 4×4.
    """
    box = (0.0, 0.0, *small.extent)
    grey, colours = small.picture.convert("L"), small.picture.convert("RGB")
    hashed = np.asarray(grey.resize((_HASHED, _HASHED), Image.Resampling.BILINEAR, box), np.float64)
    # Rounded, so that noise of the last digits in a flat picture cannot turn a bit.
    frequencies = np.round(_LOWEST @ hashed @ _LOWEST.T, 3)
    bits = (frequencies > np.median(frequencies)).ravel()
    likeness = grey.resize((SIDE, SIDE), Image.Resampling.BOX, box).tobytes()
    patches = colours.resize((PATCHES, PATCHES), Image.Resampling.BOX, box).tobytes()
    return int.from_bytes(np.packbits(bits).tobytes(), "big"), likeness + patches
