"""The outlines of the ten categories, as parts to be painted one over the other.

Coordinates: the middle line is x = 0, y grows downwards, the object is about one unit in its longer direction.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Part:
    """One thing to paint.

    role: polygons: "cloth" (the fabric), "lining" (its colour, darker), "solid" (a colour of its own); lines: "fold"
        (thin, dark), "rod" (a colour of its own, or the lining's), "trim" (only on trimmed items); "buttons": discs
        (only on items with gold).
    points: [n, 2] in the object's coordinates.
    width: of a line, or a disc's diameter, in the object's coordinates.
    colour: of "solid" and "rod"; black stands for the lining's.
    """

    role: str
    points: Points
    width: float = 0.0
    colour: tuple[int, int, int] = (0, 0, 0)


WOOD = (133, 88, 52)
SOLE = (58, 50, 48)
METAL = (120, 122, 130)


def shape(category: str, rng: np.random.Generator) -> list[Part]:
    """The parts of one object of a category, from back to front; cut and proportions vary by `rng`."""
    return _SHAPES[category](rng)


def _points(pairs: Sequence[tuple[float, float]], radius: float = 0.0, closed: bool = True) -> Points:
    """An array of points whose corners are rounded, beginning `radius` (or a third of the side) before each corner."""
    points = np.array(pairs, dtype=np.float64)
    if radius == 0.0:
        return points
    before, after = np.roll(points, 1, axis=0) - points, np.roll(points, -1, axis=0) - points
    start = points + before * np.minimum(radius / np.linalg.norm(before, axis=1), 0.34)[:, None]
    end = points + after * np.minimum(radius / np.linalg.norm(after, axis=1), 0.34)[:, None]
    # Each corner becomes a quadratic Bézier curve from `start` to `end` with the corner as its control point.
    t = np.linspace(0, 1, 5)[None, :, None]
    rounded = (1 - t) ** 2 * start[:, None] + 2 * t * (1 - t) * points[:, None] + t**2 * end[:, None]
    if closed:
        return rounded.reshape(-1, 2)
    return np.concatenate([points[:1], rounded[1:-1].reshape(-1, 2), points[-1:]])


def _mirrored(pairs: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(-x, y) for x, y in pairs]


def _both_sides(role: str, pairs: Sequence[tuple[float, float]], radius: float = 0.0, width: float = 0.0) -> list[Part]:
    closed = role in ("cloth", "lining", "solid")
    return [Part(role, _points(side, radius, closed), width) for side in (pairs, _mirrored(pairs))]


def _line(role: str, pairs: Sequence[tuple[float, float]], width: float, radius: float = 0.0) -> Part:
    return Part(role, _points(pairs, radius, closed=False), width)


def _arc(
    x: float, y: float, rx: float, ry: float, start: float, end: float, count: int = 24
) -> list[tuple[float, float]]:
    """Points on an ellipse from angle `start` to `end` in degrees, clockwise from the right as seen."""
    angles = np.radians(np.linspace(start, end, count))
    return list(zip((x + rx * np.cos(angles)).tolist(), (y + ry * np.sin(angles)).tolist(), strict=True))


def _coat(rng: np.random.Generator) -> list[Part]:
    spread = rng.uniform(0.42, 0.48)
    hem = rng.uniform(0.28, 0.34)
    sleeve = [(-0.20, 0.07), (-0.27, 0.13), (-spread, 0.60), (-spread + 0.12, 0.65), (-0.19, 0.36)]
    body = [
        (-0.08, 0.02),
        (-0.23, 0.07),
        (-0.22, 0.46),
        (-hem, 1.0),
        (hem, 1.0),
        (0.22, 0.46),
        (0.23, 0.07),
        (0.08, 0.02),
    ]
    lapel = [(-0.08, 0.01), (-0.16, 0.15), (-0.11, 0.18), (0.0, 0.36), (-0.02, 0.2)]
    return [
        *_both_sides("cloth", sleeve, 0.05),
        Part("cloth", _points(body, 0.05)),
        Part("lining", _points([(-0.07, 0.02), (0.07, 0.02), (0.0, 0.3)])),
        *_both_sides("lining", lapel),
        _line("fold", [(0.0, 0.36), (0.01, 1.0)], 0.012),
        Part("lining", _points([(-0.215, 0.47), (0.215, 0.47), (0.22, 0.53), (-0.22, 0.53)])),
        *_both_sides("trim", [(-spread + 0.005, 0.55), (-spread + 0.14, 0.60)], width=0.055),
        _line("trim", [(-hem + 0.02, 0.93), (hem - 0.02, 0.93)], 0.07),
        Part("buttons", _points([(x, y) for y in (0.4, 0.62, 0.74, 0.86) for x in (-0.09, 0.09)]), 0.05),
    ]


def _shirt(rng: np.random.Generator) -> list[Part]:
    cuff = rng.uniform(0.34, 0.42)
    side = rng.uniform(0.24, 0.28)
    sleeve = [(-0.18, 0.04), (-0.30, 0.08), (-0.50, cuff - 0.06), (-0.40, cuff + 0.07), (-0.22, 0.28)]
    body = [(-0.1, 0.02), (-0.27, 0.06), (-side, 0.78), (side, 0.78), (0.27, 0.06), (0.1, 0.02)]
    return [
        *_both_sides("cloth", sleeve, 0.05),
        Part("cloth", _points(body, 0.05)),
        Part("lining", _points(_arc(0, 0.03, 0.11, 0.06, 0, 360))),
        *_both_sides("lining", [(-0.11, 0.0), (-0.14, 0.07), (-0.07, 0.15), (0.0, 0.07)]),
        _line("fold", [(0.0, 0.08), (0.0, 0.77)], 0.014),
        *_both_sides("trim", [(-0.475, cuff - 0.07), (-0.375, cuff + 0.035)], width=0.055),
        _line("trim", [(-side + 0.01, 0.72), (side - 0.01, 0.72)], 0.065),
        Part("buttons", _points([(0.0, y) for y in (0.2, 0.33, 0.46, 0.59)]), 0.055),
    ]


def _dress(rng: np.random.Generator) -> list[Part]:
    hem = rng.uniform(0.36, 0.44)
    waist = rng.uniform(0.10, 0.12)
    top = [(-0.13, 0.1), (-0.15, 0.2), (-waist, 0.38), (waist, 0.38), (0.15, 0.2), (0.13, 0.1), (0.0, 0.16)]
    skirt = [
        (-waist, 0.38),
        (-0.22, 0.6),
        (-hem, 0.95),
        (-0.2, 1.0),
        (0.2, 1.0),
        (hem, 0.95),
        (0.22, 0.6),
        (waist, 0.38),
    ]
    return [
        *_both_sides("rod", [(-0.11, 0.14), (-0.07, 0.0)], width=0.035),
        Part("cloth", _points(skirt, 0.1)),
        Part("cloth", _points(top, 0.04)),
        *_both_sides("fold", [(-0.05, 0.42), (-0.14, 0.97)], width=0.012),
        _line("fold", [(0.0, 0.42), (0.01, 0.98)], 0.012),
        Part(
            "lining",
            _points([(-waist - 0.01, 0.36), (waist + 0.01, 0.36), (waist + 0.01, 0.41), (-waist - 0.01, 0.41)]),
        ),
        _line("trim", [(-hem + 0.04, 0.88), (-0.18, 0.93), (0.18, 0.93), (hem - 0.04, 0.88)], 0.07, 0.1),
        Part("buttons", _points([(0.0, y) for y in (0.2, 0.29)] + [(x, 0.7) for x in (-0.13, 0.0, 0.13)]), 0.055),
    ]


def _trousers(rng: np.random.Generator) -> list[Part]:
    ankle = rng.uniform(0.09, 0.13)
    stance = rng.uniform(0.17, 0.23)
    leg = [(-0.2, 0.03), (-0.24, 0.2), (-stance - ankle, 1.0), (-stance + ankle - 0.02, 1.0), (0.0, 0.36), (0.0, 0.03)]
    return [
        *_both_sides("cloth", leg),
        Part("lining", _points([(-0.205, 0.0), (0.205, 0.0), (0.21, 0.075), (-0.21, 0.075)])),
        _line("fold", [(0.0, 0.08), (0.0, 0.3)], 0.014),
        *_both_sides("fold", [(-0.12, 0.12), (-stance, 0.97)], width=0.01),
        *_both_sides("trim", [(-0.22, 0.12), (-0.235, 0.22), (-stance - ankle + 0.03, 0.9)], width=0.04),
        *_both_sides("trim", [(-stance - ankle + 0.01, 0.93), (-stance + ankle - 0.02, 0.93)], width=0.08),
        Part("buttons", _points([(x, y) for y in (0.18, 0.3, 0.42) for x in (-0.1, 0.1)]), 0.055),
    ]


def _skirt(rng: np.random.Generator) -> list[Part]:
    waist = rng.uniform(0.2, 0.25)
    hem = rng.uniform(0.46, 0.5)
    body = [(-waist, 0.05), (-hem, 0.56), (-0.25, 0.62), (0.25, 0.62), (hem, 0.56), (waist, 0.05)]
    return [
        Part("cloth", _points(body)),
        *[_line("fold", [(waist * t, 0.1), (hem * t * 0.97, 0.6)], 0.014) for t in (-0.6, -0.2, 0.2, 0.6)],
        Part(
            "lining", _points([(-waist - 0.01, 0.0), (waist + 0.01, 0.0), (waist + 0.02, 0.08), (-waist - 0.02, 0.08)])
        ),
        _line("trim", [(-hem + 0.03, 0.5), (-0.24, 0.55), (0.24, 0.55), (hem - 0.03, 0.5)], 0.065),
        Part("buttons", _points([(x, 0.27) for x in (-0.16, 0.0, 0.16)]), 0.06),
    ]


def _bag(rng: np.random.Generator) -> list[Part]:
    rise = rng.uniform(0.3, 0.38)
    top = rng.uniform(0.36, 0.42)
    body = [(-top, 0.38), (-0.5, 0.9), (-0.42, 0.97), (0.42, 0.97), (0.5, 0.9), (top, 0.38)]
    flap = [(-top - 0.01, 0.36), (-top - 0.03, 0.52), (0.0, 0.64), (top + 0.03, 0.52), (top + 0.01, 0.36)]
    return [
        _line("rod", _arc(0, 0.4, 0.26, rise, 180, 360), 0.055),
        Part("cloth", _points(body, 0.05)),
        Part("lining", _points(flap, 0.12)),
        Part("solid", _points(_arc(0, 0.61, 0.05, 0.05, 0, 360)), colour=METAL),
        _line("trim", [(-0.47, 0.87), (0.47, 0.87)], 0.075),
        Part("buttons", _points([(x, 0.46) for x in (-0.24, -0.12, 0.0, 0.12, 0.24)]), 0.06),
    ]


def _scarf(rng: np.random.Generator) -> list[Part]:
    left = rng.uniform(0.92, 1.0)
    right = rng.uniform(0.62, 0.74)
    tail = [(-0.16, 0.22), (-0.3, left), (-0.04, left + 0.01), (0.06, 0.26)]
    short = [(-0.04, 0.24), (0.1, right + 0.02), (0.34, right - 0.04), (0.17, 0.2)]
    parts = [Part("cloth", _points(short)), Part("cloth", _points(tail))]
    fringe = [((-0.29 + 0.05 * i, left), (-0.295 + 0.052 * i, left + 0.06)) for i in range(6)]
    fringe += [
        ((0.11 + 0.045 * i, right + 0.015 - 0.01 * i), (0.12 + 0.047 * i, right + 0.075 - 0.01 * i)) for i in range(6)
    ]
    return [
        *[_line("rod", ends, 0.022) for ends in fringe],
        *parts,
        Part("cloth", _points(_arc(0, 0.17, 0.3, 0.17, 0, 360))),
        Part("lining", _points(_arc(0, 0.115, 0.19, 0.07, 0, 360))),
        _line("fold", _arc(0, 0.14, 0.25, 0.14, 30, 150), 0.012),
        _line("trim", [(-0.285, left - 0.08), (-0.035, left - 0.07)], 0.075),
        _line("trim", [(0.095, right - 0.055), (0.315, right - 0.105)], 0.075),
        Part("buttons", _points([(-0.15 + 0.03 * i, left - 0.2 - 0.12 * i) for i in range(3)]), 0.06),
    ]


def _shoe(x: float, y: float, toe: float, heel: float) -> list[Part]:
    tip = 0.36 + toe
    upper = [(-0.38, -0.3), (-0.4, 0.02), (tip, 0.02), (tip + 0.03, -0.07), (0.2, -0.13), (0.03, -0.27), (-0.13, -0.3)]
    tongue = [(-0.36, -0.33), (-0.36, -0.26), (-0.2, -0.2), (-0.02, -0.24), (-0.04, -0.36), (-0.14, -0.32)]
    sole = [(-0.43, 0.0), (-0.43, heel), (-0.16, heel), (-0.12, 0.06), (tip, 0.06), (tip + 0.06, 0.0)]
    move = np.array([x, y])
    return [
        Part("lining", _points(tongue, 0.04) + move),
        Part("solid", _points(sole) + move, colour=SOLE),
        Part("cloth", _points(upper, 0.1) + move),
        _line("fold", [(0.18 + x, -0.13 + y), (0.21 + x, -0.06 + y), (0.2 + x, 0.0 + y)], 0.014),
        _line("trim", [(-0.4 + x, -0.03 + y), (tip + x, -0.03 + y)], 0.07),
        Part("buttons", _points([(0.08, -0.16), (-0.03, -0.16), (-0.14, -0.16), (-0.25, -0.16)]) + move, 0.065),
    ]


def _shoes(rng: np.random.Generator) -> list[Part]:
    toe, heel = rng.uniform(0.0, 0.06), rng.uniform(0.08, 0.13)
    apart = rng.uniform(0.33, 0.4)
    return [*_shoe(0.08, 0.36, toe, heel), *_shoe(-0.06, 0.36 + apart, toe, heel)]


def _hat(rng: np.random.Generator) -> list[Part]:
    tall = rng.uniform(0.0, 0.06)
    brim = rng.uniform(0.095, 0.125)
    crown = [
        (-0.28, 0.5),
        (-0.25, 0.1),
        (-0.13, tall - 0.02),
        (0.0, tall + 0.04),
        (0.13, tall - 0.02),
        (0.25, 0.1),
        (0.28, 0.5),
    ]
    return [
        Part("cloth", _points(_arc(0, 0.5, 0.5, brim, 0, 360))),
        Part("lining", _points(_arc(0, 0.49, 0.34, brim * 0.55, 0, 360))),
        Part("cloth", np.concatenate([_points(crown, 0.09, closed=False), _points(_arc(0, 0.5, 0.28, 0.04, 0, 180))])),
        _line("fold", [(0.0, tall + 0.05), (-0.02, 0.2)], 0.014),
        _line("trim", _arc(0, 0.43, 0.27, 0.04, 172, 8), 0.085),
        Part("buttons", _points([(x, 0.25) for x in (-0.14, 0.0, 0.14)]), 0.06),
    ]


def _umbrella(rng: np.random.Generator) -> list[Part]:
    height = rng.uniform(0.38, 0.44)
    ribs = np.linspace(-0.5, 0.5, 5)
    scallops = [p for a, b in pairwise(ribs.tolist()) for p in _arc((a + b) / 2, 0.48, 0.125, 0.045, 180, 360, 7)]
    dome = _arc(0, 0.48, 0.5, height, 0, -180)
    return [
        Part("rod", _points([(0.0, 0.02), (0.0, 0.9), *_arc(0.06, 0.9, 0.06, 0.07, 180, 20, 10)]), 0.04, WOOD),
        Part("cloth", _points(dome + scallops[1:-1])),
        *[
            _line(
                "fold", [(x * t, y) for t, y in ((0.0, 0.48 - height), (0.6, 0.56 - height), (1.0, 0.46))], 0.014, 0.3
            )
            for x in ribs[1:-1]
        ],
        _line("trim", _arc(0, 0.49, 0.47, height - 0.1, 190, 350), 0.06),
        Part("buttons", _points([(x, 0.26) for x in (-0.17, 0.0, 0.17)]), 0.06),
    ]


_SHAPES: dict[str, Callable[[np.random.Generator], list[Part]]] = {
    "COATS": _coat,
    "SHIRTS": _shirt,
    "DRESSES": _dress,
    "BAGS": _bag,
    "TROUSERS": _trousers,
    "SCARVES": _scarf,
    "SHOES": _shoes,
    "SKIRTS": _skirt,
    "HATS": _hat,
    "UMBRELLAS": _umbrella,
}
