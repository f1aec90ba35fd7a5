"""The figures of a record as one SVG that stands by itself: times the baseline, and share of the physical limit."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from tests.benchmarks.bench.runs import Record
from tests.benchmarks.figures import Beside

WIDTH, LABELS, VALUES, ROW, HEAD = 1000, 500, 70, 20, 64
MOST_LETTERS = 76
STYLE = """
svg { background: #ffffff; font: 12px system-ui, sans-serif; }
text { fill: #24292f; } .small { fill: #6e7781; } .title { font-size: 15px; font-weight: 600; }
.group { font-weight: 600; } .grid { stroke: #d0d7de; } .one { stroke: #57606a; }
.good { fill: #2f7d4f; } .bad { fill: #b3542d; } .whisker { stroke: #24292f; stroke-width: 1.5; }
@media (prefers-color-scheme: dark) {
  svg { background: #0d1117; } text { fill: #e6edf3; } .small { fill: #8b949e; } .grid { stroke: #30363d; }
  .one { stroke: #8b949e; } .good { fill: #4fae77; } .bad { fill: #d9794f; } .whisker { stroke: #e6edf3; }
}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A bar of a panel."""

    group: str
    label: str
    against: str
    value: float
    spread: tuple[float, float] | None


def svg(record: Record) -> str:
    """The whole picture; panels without a bar are left out."""
    ratios, shares = _bars(record, "baseline"), _bars(record, "limit")
    panels, top = [], 44.0
    for title, bars, paint in (
        ("Times as good as the baseline of the same run (more is better)", ratios, _ratio_panel),
        ("Share of the physical limit that is reached", shares, _share_panel),
    ):
        if bars:
            panels.append(f'<text class="title" x="16" y="{top + 8}">{title}</text>')
            panels += paint(bars, top)
            top += HEAD + ROW * (len(bars) + len({bar.group for bar in bars}))
    said = f"{record.machine['cpu']}, {record.machine['cores']} cores, {record.begun}, {record.size} size"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top:.0f}" width="{WIDTH}" height="{top:.0f}" '
        f'role="img" aria-label="Benchmarks"><title>Benchmarks</title><style>{STYLE}</style>'
        f'<text class="small" x="16" y="22">{escape(said)}</text>{"".join(panels)}</svg>\n'
    )


def _bars(record: Record, against: str) -> list[Bar]:
    found = []
    for outcome in record.benchmarks:
        for figure in outcome.figures:
            beside: Beside | None = getattr(figure, against)
            if beside and math.isfinite(beside.ratio) and beside.ratio > 0:
                found.append(
                    Bar(
                        group=outcome.name,
                        label=figure.name,
                        against=beside.name,
                        value=beside.ratio,
                        spread=beside.spread,
                    )
                )
    return found


def _ratio_panel(bars: Sequence[Bar], top: float) -> list[str]:
    """Bars from 1× to either side, on a logarithmic scale."""
    ends = [end for bar in bars for end in (bar.value, *(bar.spread or ()))]
    low, high = min(0.9, *ends) * 0.95, max(2.0, *ends) * 1.05
    ticks = [factor * 10.0**power for power in range(-3, 6) for factor in (1, 2, 5)]

    def x_of(value: float) -> float:
        inside = min(max(value, low), high)
        return LABELS + math.log(inside / low) / math.log(high / low) * (WIDTH - LABELS - VALUES)

    shown = [tick for tick in ticks if low <= tick <= high]
    return _panel(bars, top, x_of, shown, 1.0, lambda value: f"{value:.3g}×")


def _share_panel(bars: Sequence[Bar], top: float) -> list[str]:
    """Bars from nothing to the whole limit; a figure beyond it, by the noise of the measurement, goes on."""
    most = max(1.0, *(end for bar in bars for end in (bar.value, *(bar.spread or ()))))

    def x_of(value: float) -> float:
        return LABELS + value / most * (WIDTH - LABELS - VALUES)

    ticks = [0.0, 0.25, 0.5, 0.75, 1.0]
    return _panel(bars, top, x_of, ticks, 0.0, lambda value: f"{value:.0%}")


def _panel(
    bars: Sequence[Bar],
    top: float,
    x_of: Callable[[float], float],
    ticks: Sequence[float],
    start: float,
    say: Callable[[float], str],
) -> list[str]:
    """Grid, groups' names and bars, from `top` on down."""
    groups = len({bar.group for bar in bars})
    first, last = top + 34, top + 34 + ROW * (len(bars) + groups)
    parts = []
    for tick in ticks:
        x = x_of(tick)
        style = "one" if tick == 1 else "grid"
        parts.append(f'<line class="{style}" x1="{x:.1f}" x2="{x:.1f}" y1="{first - 4:.1f}" y2="{last:.1f}"/>')
        parts.append(f'<text class="small" x="{x:.1f}" y="{first - 8:.1f}" text-anchor="middle">{say(tick)}</text>')
    y, group = first, None
    for bar in bars:
        if bar.group != group:
            group = bar.group
            parts.append(f'<text class="group" x="16" y="{y + 14:.1f}">{escape(group)}</text>')
            y += ROW
        left, right = sorted((x_of(start), x_of(bar.value)))
        style = "bad" if bar.value < start else "good"
        tip = f"{bar.label}: {say(bar.value)} of {bar.against}"
        label, against = _short(bar.label, MOST_LETTERS), _short(bar.against, MOST_LETTERS - len(bar.label) - 3)
        parts.append(
            f'<text x="28" y="{y + 14:.1f}">{escape(label)} <tspan class="small">{escape(against)}</tspan></text>'
        )
        parts.append(
            f'<rect class="{style}" x="{left:.1f}" y="{y + 4:.1f}" width="{max(right - left, 1):.1f}" height="12">'
            f"<title>{escape(tip)}</title></rect>"
        )
        if bar.spread:
            low, high = map(x_of, bar.spread)
            parts.append(f'<line class="whisker" x1="{low:.1f}" x2="{high:.1f}" y1="{y + 10:.1f}" y2="{y + 10:.1f}"/>')
        parts.append(f'<text x="{WIDTH - 10}" y="{y + 14:.1f}" text-anchor="end">{say(bar.value)}</text>')
        y += ROW
    return parts


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…" if most > 1 else ""
