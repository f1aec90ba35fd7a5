"""The fabrics: a colour with stripes, checks or dots wide enough to be seen at a hundred pixels."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.floating]

# colour -> (the cloth, what stripes and dots on it are painted with, what checks are painted with)
PALETTE = {
    "black": ((42, 42, 48), (238, 236, 230), (168, 150, 120)),
    "red": ((205, 38, 44), (252, 240, 232), (104, 14, 30)),
    "yellow": ((246, 196, 28), (92, 66, 30), (168, 104, 8)),
    "green": ((28, 138, 76), (240, 246, 232), (8, 62, 44)),
    "blue": ((36, 88, 196), (236, 242, 252), (12, 34, 96)),
    "pink": ((240, 128, 178), (255, 246, 250), (172, 44, 112)),
    "ecru": ((230, 210, 170), (150, 106, 66), (158, 116, 72)),
    "grey": ((140, 140, 140), (244, 244, 244), (78, 78, 78)),
}
# Sizes as shares of the picture's long side, so that they outlive its being fitted into a small square.
STRIPE = 0.125
CHECK = 0.175
DOT = 0.125
# Rows of dots are nearer to each other than the dots in a row, as in a honeycomb.
ROW = 0.866
# Linen shows its threads, wool is rough, silk gleams.
SHADE = (30, 26, 24)
GLOSS = (255, 255, 255)


def cloth(
    colour: str, fabric: str, u: Array, v: Array, side: float, rng: np.random.Generator
) -> tuple[Image.Image, tuple[int, ...]]:
    """The fabric over a whole picture.

    u, v: [H, W], the pixel's place along and across the fabric, in pixels; side: the picture's long side in pixels.
    Returns the painted fabric, RGB [H, W], and its ground colour.
    """
    ground: tuple[int, ...]
    ground, contrast, dark = PALETTE[colour]
    if colour != "grey":
        varied = np.array(ground) * rng.uniform(0.93, 1.05) + rng.uniform(-7, 7, 3)
        ground = tuple(int(c) for c in np.clip(varied, 0, 255))
    painted = Image.new("RGB", (u.shape[1], u.shape[0]), ground)
    phase_u, phase_v, size = rng.uniform(0, 1), rng.uniform(0, 1), rng.uniform(0.92, 1.08) * side
    if fabric == "striped linen":
        _print(painted, contrast, 242 * _bands(v, STRIPE * size, 0.44, phase_v))
        threads = rng.integers(0, 34, (u.shape[0], 1)) + rng.integers(0, 34, (1, u.shape[1]))
        _print(painted, SHADE, threads)
    elif fabric == "checked wool":
        ways = _bands(u, CHECK * size, 0.46, phase_u) + _bands(v, CHECK * size, 0.46, phase_v)
        _print(painted, dark, 118 * ways)
        _print(painted, SHADE, rng.integers(0, 70, u.shape, dtype=np.uint8))
    elif fabric == "dotted silk":
        _print(painted, contrast, 242 * _dots(u, v, DOT * size, 0.3, phase_u, phase_v))
        _print(painted, GLOSS, 100 * np.maximum(1 - 4 * _off_centre((u + 0.4 * v) / (0.55 * side) + phase_u), 0))
    return painted, ground


def _print(fabric: Image.Image, ink: tuple[int, int, int], strength: np.ndarray) -> None:
    """Lay an ink over the fabric; strength: [H, W] in 0..255."""
    fabric.paste(ink, (0, 0), Image.fromarray(strength.astype(np.uint8)))


def _off_centre(place: Array) -> Array:
    """How far a place, counted in periods, is from the middle of its period: 0 there, 0.5 at both ends."""
    return np.abs(place - np.floor(place) - np.float32(0.5))


def _bands(across: Array, period: float, width: float, phase: float) -> Array:
    """1 in a band of `width` periods in every period, 0 elsewhere; edges one pixel soft."""
    return np.clip((width / 2 - _off_centre(across / period + phase)) * period + 0.5, 0, 1)


def _dots(u: Array, v: Array, period: float, radius: float, phase_u: float, phase_v: float) -> Array:
    """1 inside discs of `radius` periods, in rows that are shifted by half a period against each other."""
    row = v / (ROW * period) + phase_v
    shift = np.float32(0.5) * (np.floor(row) % 2)
    across, along = _off_centre(u / period + phase_u + shift), ROW * _off_centre(row)
    return np.clip((radius - np.sqrt(across * across + along * along)) * period + 0.5, 0, 1)
