"""Small charts as inline SVG: their colours come from the page's style sheet, so they follow light and dark."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 12, 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of a chart; its style is the CSS class `line-<name>`."""

    name: str
    label: str
    points: Sequence[tuple[float, float]]
    dots: bool = False  # mark each point, for few and far between ones


@dataclass(frozen=True, slots=True, kw_only=True)
class Whisker:
    """A dot with its interval, the fractions of a score; its style is the CSS class `dot-<style>`."""

    label: str
    style: str
    value: float
    low: float
    high: float
    shown: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A point of the scatter: truth and prediction, both positive."""

    truth: float
    predicted: float
    right: bool
    label: str


def line_chart(lines: Sequence[Line], label: str, width: int = 560, height: int = 240) -> Markup:
    """Lines over steps, both axes linear from the data's own range; what is not finite is left out."""
    shown = [(line, [(x, y) for x, y in line.points if math.isfinite(y)]) for line in lines]
    shown = [(line, points) for line, points in shown if points]
    if not shown:
        return Markup("")
    xs = [x for _, points in shown for x, _ in points]
    ys = [y for _, points in shown for _, y in points]
    x_ticks = _ticks(min(xs), max(xs), 6)
    # From zero, but where all that happens would be a line at the top; what never changes stands in the middle.
    flat = min(ys) == max(ys)
    y_ticks = _ticks(min(0.0, *ys) if flat or min(ys) < 0.5 * max(ys) else min(ys), max(ys) * (1.5 if flat else 1), 5)
    left, right = min(xs), max(max(xs), min(xs) + 1e-9)
    bottom, top = y_ticks[0], max(y_ticks[-1], max(ys))

    def x_of(x: float) -> float:
        return _LEFT + (x - left) / (right - left) * (width - _LEFT - _RIGHT)

    def y_of(y: float) -> float:
        return height - _BOTTOM - (y - bottom) / (top - bottom) * (height - _TOP - _BOTTOM)

    parts = [_grid(x_ticks, y_ticks, x_of, y_of, width, height, within=(left, right), shown=_number)]
    for line, points in shown:
        path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in _thinned(points))
        parts.append(f'<polyline class="line line-{line.name}" points="{path}"/>')
        for x, y in points if line.dots else ():
            tip = f"{line.label}: {_number(y)} at step {x:g}"
            parts.append(
                f'<circle class="fill-{line.name}" cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="3">'
                f"<title>{escape(tip)}</title></circle>"
            )
    parts.append(f'<text class="tick" x="{width - _RIGHT}" y="{height - 4}" text-anchor="end">step</text>')
    return _svg(parts, label, width, height, wide=True)


def whisker_chart(rows: Sequence[Whisker], label: str, width: int = 340, plain: bool = False) -> Markup:
    """Dots with their 95 % intervals below one another, on one scale from 0: of per cent, or plain numbers."""
    row_height, left, right = 30, 8, 8
    height = row_height * len(rows) + 22
    ends = [row.high if math.isfinite(row.high) else row.value for row in rows]
    top = max([end for end in ends if math.isfinite(end)] or [1.0])
    top = 1.0 if 0.5 < top <= 1.0 and not plain else _ticks(0.0, max(top, 0.01), 4)[-1]

    def x_of(x: float) -> float:
        return left + min(max(x, 0.0), top) / top * (width - left - right) if math.isfinite(x) else width - right

    parts = []
    for step in range(5):
        x = x_of(top * step / 4)
        anchor = "start" if step == 0 else "end" if step == 4 else "middle"
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{height - 18}"/>')
        value = top * step / 4
        tick = _number(value) if plain else f"{100 * value:.3g} %" if step == 4 else f"{100 * value:.3g}"
        parts.append(f'<text class="tick" x="{x:.1f}" y="{height - 4}" text-anchor="{anchor}">{tick}</text>')
    for number, row in enumerate(rows):
        base = number * row_height
        y = base + 23
        parts.append(f'<text class="row" x="{left}" y="{base + 13}">{escape(row.label)}</text>')
        parts.append(
            f'<text class="row value" x="{width - right}" y="{base + 13}" text-anchor="end">{escape(row.shown)}</text>'
        )
        low, high = x_of(row.low), x_of(row.high)
        parts.append(f'<line class="whisker dot-{row.style}" x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}"/>')
        for end in (low, high):
            parts.append(
                f'<line class="whisker dot-{row.style}" x1="{end:.1f}" x2="{end:.1f}" y1="{y - 3.5}" y2="{y + 3.5}"/>'
            )
        parts.append(f'<circle class="dot dot-{row.style}" cx="{x_of(row.value):.1f}" cy="{y}" r="4.5"/>')
    return _svg(parts, label, width, height)


def scatter_chart(points: Sequence[Point], tolerance: float, label: str, size: int = 430) -> Markup:
    """Predicted over true values, both logarithmic, with the diagonal and the band of ±tolerance around it."""
    points = [point for point in points if point.truth > 0 and point.predicted > 0]
    if not points:
        return Markup("")
    values = [value for point in points for value in (point.truth, point.predicted)]
    low, high = math.log10(min(values)) - 0.05, math.log10(max(values)) + 0.05
    ticks = [math.log10(tick) for tick in _log_ticks(10**low, 10**high)]

    def x_of(x: float) -> float:
        return _LEFT + (x - low) / (high - low) * (size - _LEFT - _RIGHT)

    def y_of(y: float) -> float:
        return size - _BOTTOM - (y - low) / (high - low) * (size - _TOP - _BOTTOM)

    parts = [_grid(ticks, ticks, x_of, y_of, size, size, within=(low, high), shown=lambda tick: f"{10**tick:,.6g}")]
    up, down = math.log10(1 + tolerance), math.log10(1 - tolerance)
    corners = [(low, low + down), (high, high + down), (high, high + up), (low, low + up)]
    outline = " ".join(f"{x_of(x):.1f},{y_of(min(max(y, low), high)):.1f}" for x, y in corners)
    parts.append(f'<polygon class="band" points="{outline}"/>')
    parts.append(f'<polyline class="diagonal" points="{_LEFT},{size - _BOTTOM} {size - _RIGHT},{_TOP}"/>')
    for point in sorted(points, key=lambda one: one.right):
        x, y = x_of(math.log10(point.truth)), y_of(math.log10(point.predicted))
        parts.append(
            f'<circle class="point {"good" if point.right else "bad"}" cx="{x:.1f}" cy="{y:.1f}" r="3">'
            f"<title>{escape(point.label)}</title></circle>"
        )
    parts.append(f'<text class="tick" x="{size - _RIGHT}" y="{size - 4}" text-anchor="end">true</text>')
    parts.append(f'<text class="tick" x="4" y="{_TOP}">predicted</text>')
    return _svg(parts, label, size, size, wide=True)


def smoothed(points: Sequence[tuple[float, float]], window: int) -> list[tuple[float, float]]:
    """A running mean over `window` neighbours, for noisy training losses."""
    half = window // 2
    means = []
    for index, (x, _) in enumerate(points):
        near = [y for _, y in points[max(0, index - half) : index + half + 1] if math.isfinite(y)]
        if near:
            means.append((x, sum(near) / len(near)))
    return means


def _grid(
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    x_of: Callable[[float], float],
    y_of: Callable[[float], float],
    width: int,
    height: int,
    within: tuple[float, float],
    shown: Callable[[float], str],
) -> str:
    """Grid lines and their numbers; x ticks outside `within` are left out."""
    parts = []
    for tick in y_ticks:
        y = y_of(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{width - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{shown(tick)}</text>')
    for tick in x_ticks:
        if within[0] <= tick <= within[1]:
            x = x_of(tick)
            edge = x > width - _RIGHT - 40  # the axis' name stands there
            parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{height - _BOTTOM}"/>')
            if not edge:
                y = height - _BOTTOM + 16
                parts.append(f'<text class="tick" x="{x:.1f}" y="{y}" text-anchor="middle">{shown(tick)}</text>')
    return "".join(parts)


def _svg(parts: Sequence[str], label: str, width: int, height: int, wide: bool = False) -> Markup:
    """wide: drawn for half a page, so that its letters grow where the screen is narrow."""
    style = ' class="wide"' if wide else ""
    return Markup(
        f'<svg{style} viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">'
        f"<title>{escape(label)}</title>" + "".join(parts) + "</svg>"
    )


def _ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers that enclose low … high."""
    span = high - low or abs(high) or 1.0
    step = 10 ** math.floor(math.log10(span / count))
    step *= next(factor for factor in (1, 2, 2.5, 5, 10) if span / (step * factor) <= count)
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between low and high: 1, 2, 5 of each power of ten; the powers alone where there are many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(powers) <= 4 else (1,)
    ticks = [tick for power in powers for factor in factors if low <= (tick := factor * 10.0**power) <= high]
    return ticks if len(ticks) >= 3 else [tick for tick in _ticks(low, high, 4) if low <= tick <= high]


def _thinned(points: Sequence[tuple[float, float]], most: int = 1200) -> Sequence[tuple[float, float]]:
    """Every n-th point of a very long line, the last one always: more would not be seen."""
    every = max(1, len(points) // most)
    return [*points[:-1:every], points[-1]]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
