"""Draws the picture of an item: background and light, the parts of its shape, shading, and a file format."""

import io
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from data.sample import shapes, textures
from data.sample.canvas import Canvas, Colour
from data.sample.rows import Item, generator
from data.sample.shapes import Part, Points

Array = NDArray[np.floating]

# Object's long side as a share of the frame, and where in the spare height it stands (0 top, 1 bottom).
PLACING = {"HATS": (0.74, 0.4), "SHOES": (0.92, 0.62), "SKIRTS": (0.86, 0.5), "SCARVES": (0.9, 0.5)}
USUAL_PLACING = (0.93, 0.5)
# Shapes that may stand in tall or in wide frames without becoming small.
TALL = {"COATS", "DRESSES", "TROUSERS", "SCARVES", "UMBRELLAS"}
WIDE = {"SHOES", "SKIRTS", "HATS"}
# Hues that no fabric has, with the dark line around them that also shows them in grey.
TRIM_COLOURS = {"ribbon": ((40, 200, 206), (8, 70, 84)), "gold": ((240, 168, 20), (104, 58, 4))}
# script -> (the label's corner as shares of the frame, its colour)
LABELS = {"cyrillic": ((0, 0), (176, 24, 60)), "greek": ((1, 0), (24, 84, 180)), "han": ((1, 1), (140, 50, 180))}
# EXIF orientation -> what undoes it, that is, how the stored picture is turned
UNDO_ORIENTATION = {
    3: Image.Transpose.ROTATE_180,
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
}
ORIENTATION_TAG = 0x0112


@dataclass(frozen=True, slots=True)
class Format:
    """How a picture is stored: its file's suffix, Pillow mode and EXIF orientation (1: upright)."""

    suffix: str
    mode: str
    orientation: int = 1


def picture_format(seed: int, item: Item) -> Format:
    """The format of an item's picture: mostly JPEG, some turned by EXIF, PNG (also transparent, palette) and WebP."""
    rng = generator(seed, item.number, 2)
    if item.colour == "grey" and rng.random() < 0.5:
        return Format("jpg" if rng.random() < 0.8 else "png", "L")
    kind = rng.choice(6, p=(0.68, 0.07, 0.05, 0.09, 0.03, 0.08))
    if kind == 1:
        return Format("jpg", "RGB", int(rng.choice(list(UNDO_ORIENTATION))))
    return (
        Format("jpg", "RGB"),
        Format("jpg", "RGB"),
        Format("png", "RGB"),
        Format("png", "RGBA"),
        Format("png", "P"),
        Format("webp", "RGB"),
    )[kind]


def draw_picture(seed: int, item: Item) -> bytes:
    """The file of an item's picture in the format of `picture_format`; the same bytes for the same arguments."""
    stored = picture_format(seed, item)
    picture = _paint(item, generator(seed, item.number, 3), transparent=stored.mode == "RGBA")
    if stored.mode == "P":
        picture = picture.quantize(64, dither=Image.Dither.NONE)
    elif stored.mode != picture.mode:
        picture = picture.convert(stored.mode)
    file = io.BytesIO()
    if stored.suffix == "jpg":
        exif = Image.Exif()
        if stored.orientation != 1:
            picture = picture.transpose(UNDO_ORIENTATION[stored.orientation])
            exif[ORIENTATION_TAG] = stored.orientation
        picture.save(file, "JPEG", quality=88, exif=exif)
    elif stored.suffix == "png":
        picture.save(file, "PNG", compress_level=3)
    else:
        picture.save(file, "WEBP", quality=86, method=0)
    return file.getvalue()


def _frame(category: str, rng: np.random.Generator) -> tuple[int, int]:
    """Width and height in pixels: nearly square as in most shops; a seventh is tall or wide, up to 2.2 to 1."""
    long_side = int(rng.triangular(120, 150, 300))
    ratio = rng.uniform(1.0, 1.15)
    turn = bool(rng.random() < 0.5)
    if rng.random() < 0.15:
        stretched = category in TALL | WIDE
        ratio = rng.uniform(1.5, 2.2) if stretched else rng.uniform(1.35, 1.6)
        turn = category in TALL if stretched else turn
    short_side = round(long_side / ratio)
    return (short_side, long_side) if turn else (long_side, short_side)


def _paint(item: Item, rng: np.random.Generator, transparent: bool) -> Image.Image:
    width, height = _frame(item.category, rng)
    warm = rng.uniform(-5, 5)
    grey = rng.uniform(232, 248)
    background = (round(grey + warm), round(grey), round(grey - warm)) if item.colour != "grey" else (round(grey),) * 3
    canvas = Canvas(width, height, background)
    parts = shapes.shape(item.category, rng)
    place = _placing(item.category, parts, canvas.size, rng)
    u, v = _fabric_axes(width, height, place.turn)
    fabric, ground = textures.cloth(item.colour, item.fabric, u, v, max(width, height), rng)
    _paint_parts(canvas, item.trim, parts, place, fabric, ground)
    return _finish(canvas, item, rng, transparent)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an object stands: its coordinates times `matrix` plus `shift` are pixels."""

    matrix: Points
    shift: Points
    turn: float
    scale: float

    def pixels(self, points: Points) -> Points:
        return points @ self.matrix.T + self.shift


def _placing(category: str, parts: list[Part], size: tuple[int, int], rng: np.random.Generator) -> _Place:
    """A place for an object in a frame of `size` pixels, somewhat turned (radians) and scaled (pixels a unit)."""
    turn = math.radians(rng.uniform(-4, 4))
    cos, sin = math.cos(turn), math.sin(turn)
    rotation = np.array([[cos, -sin], [sin, cos]])
    corners = np.concatenate([part.points @ rotation.T for part in parts if part.role not in ("trim", "buttons")])
    low, high = corners.min(axis=0), corners.max(axis=0)
    fill, anchor = PLACING.get(category, USUAL_PLACING)
    scale = fill * rng.uniform(0.92, 1.0) * float((size / (high - low)).min())
    spare = size - scale * (high - low)
    share = np.array([0.5 + rng.uniform(-0.15, 0.15), anchor + rng.uniform(-0.1, 0.1)])
    return _Place(rotation * scale, spare * share - scale * low, turn, scale)


def _fabric_axes(width: int, height: int, turn: float) -> tuple[Array, Array]:
    """How far every pixel is along and across the fabric, which turns with the object; float32 [H, W], pixels."""
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
    cos, sin = np.float32(math.cos(turn)), np.float32(math.sin(turn))
    return x * cos + y * sin, y * cos - x * sin


def _paint_parts(
    canvas: Canvas, trim: str, parts: list[Part], place: _Place, fabric: Image.Image, ground: Colour
) -> None:
    scale = place.scale
    edge = _tone(ground, 0.55)
    lining = _tone(ground, 0.72)
    for part in parts:
        points = place.pixels(part.points)
        width = part.width * scale
        if part.role == "cloth":
            canvas.polygon(points, fabric, edge, 0.014 * scale)
        elif part.role == "lining":
            canvas.polygon(points, lining, edge, 0.01 * scale)
        elif part.role == "solid":
            canvas.polygon(points, part.colour, _tone(part.colour, 0.7), 0.01 * scale)
        elif part.role == "fold":
            canvas.line(points, width, edge, 190, solid=False)
        elif part.role == "rod":
            colour = part.colour if any(part.colour) else lining
            canvas.line(points, width + 0.012 * scale, _tone(colour, 0.7))
            canvas.line(points, width, colour)
        elif part.role == "trim" and trim != "none":
            bright, dark = TRIM_COLOURS[trim]
            broad = width * (1.45 if trim == "gold" else 1.1)
            canvas.line(points, broad + 0.03 * scale, dark)
            canvas.line(points, broad, bright)
        elif part.role == "buttons" and trim == "gold":
            bright, dark = TRIM_COLOURS["gold"]
            canvas.discs(points, width + 0.024 * scale, dark)
            canvas.discs(points, width, bright)


def _tone(colour: Colour, factor: float) -> Colour:
    return tuple(int(c * factor) for c in colour)


def _finish(canvas: Canvas, item: Item, rng: np.random.Generator, transparent: bool) -> Image.Image:
    """Light from one side, rounded edges, a soft shadow, grain and the label of the title's script."""
    width, height = canvas.size
    side = max(width, height)
    covered = canvas.covered
    soft = covered.filter(ImageFilter.BoxBlur(side * 0.02))
    shadow = Image.new("L", canvas.size)
    shadow.paste(covered.filter(ImageFilter.BoxBlur(side * 0.035)), (round(side * 0.015), round(side * 0.03)))
    inside = np.asarray(covered, dtype=np.float32) / 255
    roundness = 0.8 + 0.2 * np.clip(np.asarray(soft, dtype=np.float32) / 128 - 0.9, 0, 1)
    shade = 1 - 0.24 / 255 * np.asarray(shadow, dtype=np.float32)
    slope_x, slope_y = rng.uniform(-0.06, 0.06), rng.uniform(0.0, 0.08)
    across = np.linspace(slope_x, -slope_x, width, dtype=np.float32)
    down = np.linspace(slope_y, -slope_y, height, dtype=np.float32)[:, None]
    brightness = np.float32(rng.uniform(0.94, 1.04))
    light = (1 + across + down) * brightness * (shade + inside * (roundness - shade))
    grain = rng.integers(-4, 5, (height, width), dtype=np.int8)
    picture = Image.merge("RGB", [_lit(band, light, grain) for band in canvas.colours.split()])
    if item.script in LABELS:
        corner, colour = LABELS[item.script]
        size = round(side * 0.15)
        left, top = corner[0] * (width - size), corner[1] * (height - size)
        picture.paste(colour, (left, top, left + size, top + size))
        covered.paste(255, (left, top, left + size, top + size))
    if transparent:
        picture.putalpha(covered)
    return picture


def _lit(band: Image.Image, light: Array, grain: NDArray[np.int8]) -> Image.Image:
    """One colour of a picture under a light (1: as it is), with grain added."""
    return Image.fromarray(np.clip(np.asarray(band) * light + grain, 0, 255).astype(np.uint8))
