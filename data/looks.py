"""What a picture looks like, in a few bytes: a perceptual hash, and a small likeness by which copies are told apart."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float64]

SIDE = 12
"""Of the likeness in grey, in pixels."""
PATCHES = 4
"""Of the likeness in colour, in pixels a side."""
LOOK_BYTES = SIDE * SIDE + PATCHES * PATCHES * 3
_HASHED, _LOW = 32, 8  # means along a side that are hashed; their lowest frequencies
_STRIP_PIXELS = 2_000_000
_TOGETHER = 1 << 17  # bytes of pixels, which as numbers stay in a core's cache
_ONE = 1 << 12  # what the weights of a mean add up to
_GREY = np.array([299.0, 587.0, 114.0])  # of red, green and blue, in thousandths
_GREY_SINGLES = _GREY.astype(np.float32)


def _cosines(count: int, side: int) -> NDArray[np.float64]:
    """The lowest `count` rows of the DCT-II over `side` points, [count, side]."""
    cosines: NDArray[np.float64] = np.cos(np.pi / side * np.arange(count)[:, None] * (np.arange(side) + 0.5)[None, :])
    return cosines


_LOWEST = _cosines(_LOW, _HASHED)


@dataclass(frozen=True, slots=True)
class Small:
    """A picture made small; its last row and column may be of a fraction of the pixels that others are of."""

    pixels: NDArray[np.uint8]
    """Grey [height, width] or RGB [height, width, 3]."""
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
        return Small(np.asarray(_plain(picture, factor)), extent)
    strips = [
        _plain(picture.crop((0, top, picture.width, min(top + rows, picture.height))), factor)
        for top in range(0, picture.height, rows)
    ]
    whole = Image.new(strips[0].mode, (strips[0].width, sum(strip.height for strip in strips)))
    top = 0
    for strip in strips:
        whole.paste(strip, (0, top))
        top += strip.height
    return Small(np.asarray(whole), extent)


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
    return look_at_all([small])[0]


def look_at_all(smalls: Sequence[Small]) -> list[tuple[int, bytes]]:
    """As `look_at` of each; together it takes a third of the time."""
    sizes: dict[tuple[tuple[int, ...], tuple[float, float]], list[int]] = {}
    for place, small in enumerate(smalls):
        sizes.setdefault((small.pixels.shape, small.extent), []).append(place)
    if not smalls:
        return []
    sums = _Sums.empty(len(smalls))
    for (_, extent), places in sizes.items():
        together = max(1, _TOGETHER // smalls[places[0]].pixels.nbytes)
        for first in range(0, len(places), together):
            some = places[first : first + together]
            sums.fill(some, np.array([smalls[place].pixels for place in some]), extent)
    # Rounded, so that noise of the last digits in a flat picture cannot turn a bit.
    frequencies = np.round(sums.grey[:, :_LOW, :_LOW] / (_ONE * _ONE * _GREY.sum()), 3).reshape(len(smalls), -1)
    ordered = np.sort(frequencies, axis=1)
    bits = frequencies > (ordered[:, 31:32] + ordered[:, 32:33]) / 2
    looks = np.concatenate([_bytes(sums.grey[:, _LOW:, _LOW:], _GREY.sum()), _bytes(sums.patches)], axis=1)
    hashes = np.packbits(bits, axis=1).view(">u8")[:, 0].tolist()
    return [(phash, look.tobytes()) for phash, look in zip(hashes, looks, strict=True)]


@dataclass(frozen=True, slots=True)
class _Sums:
    """Weighted sums over some pictures' pixels: whole numbers but for the frequencies', and exact."""

    grey: Floats
    """[pictures, _LOW + SIDE, _LOW + SIDE]: frequencies come first, then the likeness; a mix of both is not used."""
    patches: Floats
    """[pictures, PATCHES, PATCHES, 3]"""

    @classmethod
    def empty(cls, count: int) -> "_Sums":
        side = _LOW + SIDE
        return cls(np.empty((count, side, side)), np.empty((count, PATCHES, PATCHES, 3)))

    def fill(self, places: list[int], pixels: NDArray[np.uint8], extent: tuple[float, float]) -> None:
        """Add up pictures of one size, [pictures, height, width] or [pictures, height, width, 3]."""
        count, height, width = pixels.shape[:3]
        across, down = _weights(width, extent[0]), _weights(height, extent[1])
        # Below 2**24 in single precision and 2**53 in double: exact, in whatever order a machine adds them up.
        singles = pixels.astype(np.float32)
        grey = singles.reshape(-1, 3) @ _GREY_SINGLES if pixels.ndim == 4 else singles * _GREY_SINGLES.sum()
        self.grey[places] = down.grey @ grey.astype(np.float64).reshape(count, height, width) @ across.grey.T
        rows = (down.patches.astype(np.float32) @ singles.reshape(count, height, -1)).astype(np.float64)
        if pixels.ndim == 4:
            channels = rows.reshape(count, PATCHES, width, 3).transpose(0, 1, 3, 2)
            self.patches[places] = (channels @ across.patches.T).transpose(0, 1, 3, 2)
        else:
            self.patches[places] = (rows @ across.patches.T)[..., None]


def _bytes(sums: Floats, one: float = 1.0) -> NDArray[np.uint8]:
    """Weighted sums along both sides, of values in units of 1 / `one`, as rounded grey levels [pictures, values]."""
    return np.floor(sums / (_ONE * _ONE * one) + 0.5).astype(np.uint8).reshape(len(sums), -1)


@dataclass(frozen=True, slots=True)
class _Weights:
    """How pixels along one side make the values of each small picture, [values, pixels].

    But for the frequencies, which are of _HASHED means, whole numbers with _ONE in each row.
    """

    grey: Floats
    """Of the frequencies, then of the likeness."""
    patches: Floats


@lru_cache(maxsize=1024)
def _weights(pixels: int, extent: float) -> _Weights:
    frequencies = _LOWEST @ _means(_HASHED, pixels, extent, _under_triangle)
    likeness, patches = (_means(count, pixels, extent, _under_box) for count in (SIDE, PATCHES))
    return _Weights(np.concatenate([frequencies, likeness]), patches)


def _means(count: int, pixels: int, extent: float, under: Callable[[Floats], Floats]) -> Floats:
    """Weights of `pixels` pixels, `extent` long together, in each of `count` means; `under`: a kernel's integral."""
    scale = extent / count
    width = max(scale, 1.0)  # one pixel at least: what is smaller than its likeness is interpolated
    centres = (np.arange(count) + 0.5)[:, None] * scale
    edges = np.minimum(np.arange(pixels + 1), extent)[None, :]
    shares = np.diff(under((edges - centres) / width), axis=1)
    shares /= shares.sum(1, keepdims=True)
    weights = np.round(shares * _ONE)
    weights[np.arange(count), weights.argmax(1)] += _ONE - weights.sum(1)
    return weights


def _under_box(place: Floats) -> Floats:
    return np.clip(place, -0.5, 0.5)


def _under_triangle(place: Floats) -> Floats:
    place = np.clip(place, -1.0, 1.0)
    return place - place * np.abs(place) / 2
