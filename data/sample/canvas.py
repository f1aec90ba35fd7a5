"""A picture under work: polygons, lines and discs with smooth edges, laid one over the other."""

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from data.sample.shapes import Points

Colour = tuple[int, ...]
Box = tuple[int, int, int, int]

# Masks are drawn this many times larger and averaged, which makes their edges smooth.
FINE = 2


class Canvas:
    """Its `colours` (RGB) and the mask of all that was painted, `covered` (L); points and widths are in pixels."""

    def __init__(self, width: int, height: int, background: tuple[int, int, int]) -> None:
        self.size = (width, height)
        self.colours = Image.new("RGB", self.size, background)
        self.covered = Image.new("L", self.size, 0)

    def _mask(self, points: Points, line: float) -> tuple[ImageDraw.ImageDraw, Image.Image, Box, Points] | None:
        """An empty fine mask over the points' surroundings, its place in the picture, and the points in it."""
        low = np.floor(points.min(axis=0) - line - 2).astype(int)
        high = np.ceil(points.max(axis=0) + line + 2).astype(int)
        left, top = max(int(low[0]), 0), max(int(low[1]), 0)
        right, bottom = min(int(high[0]), self.size[0]), min(int(high[1]), self.size[1])
        if right <= left or bottom <= top:
            return None
        mask = Image.new("L", ((right - left) * FINE, (bottom - top) * FINE), 0)
        return ImageDraw.Draw(mask), mask, (left, top, right, bottom), (points - (left, top)) * FINE

    def _put(self, fill: Image.Image | Colour, mask: Image.Image, box: Box, solid: bool = True) -> None:
        self.colours.paste(fill.crop(box) if isinstance(fill, Image.Image) else fill, box, mask)
        if solid:
            self.covered.paste(255, box, mask)

    def polygon(self, points: Points, fill: Image.Image | Colour, edge: Colour, width: float) -> None:
        """A polygon with a soft darker edge of `width` pixels."""
        made = self._mask(points, width)
        if made is None:
            return
        pen, mask, box, inside = made
        corners = [tuple(p) for p in inside.tolist()]
        pen.polygon(corners, fill=255)
        outer = mask.reduce(FINE)
        pen.line([*corners, corners[0], corners[1]], fill=70, width=max(round(width * FINE), 1))
        self._put(edge, outer, box)
        self._put(fill, ImageChops.darker(mask.reduce(FINE), outer), box)

    def line(self, points: Points, width: float, fill: Colour, opacity: int = 255, solid: bool = True) -> None:
        """A line of `width` pixels; opacity 0..255."""
        made = self._mask(points, width)
        if made is None:
            return
        pen, mask, box, inside = made
        pen.line([tuple(p) for p in inside.tolist()], fill=opacity, width=max(round(width * FINE), 1), joint="curve")
        self._put(fill, mask.reduce(FINE), box, solid)

    def discs(self, points: Points, width: float, fill: Colour) -> None:
        """Discs of `width` pixels across."""
        made = self._mask(points, width)
        if made is None:
            return
        pen, mask, box, inside = made
        for x, y in inside.tolist():
            pen.ellipse((x - width, y - width, x + width, y + width), fill=255)
        self._put(fill, mask.reduce(FINE), box)
