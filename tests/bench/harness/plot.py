"""Curves on doubly logarithmic axes as SVG, without a library: one panel for each figure, side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from harness.results import show

WIDTH, HEIGHT, MARGIN = 360, 260, 56
COLOURS = ("#1f5fa8", "#b5492c")


@dataclass(frozen=True)
class Curve:
    """A figure at several sizes; `points` are (size, value), both positive."""

    name: str
    unit: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Panel:
    """Curves over one axis; the first has its scale on the left, the second on the right."""

    axis: str
    unit: str
    curves: tuple[Curve, ...]


def svg(panels: Sequence[Panel], caption: str) -> str:
    """The panels with a caption, which names the machine."""
    parts = [_panel(panel, number * WIDTH) for number, panel in enumerate(panels)]
    width = WIDTH * len(panels)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT + 24}" font-family="sans-serif" '
        f'font-size="11" role="img"><title>{escape(caption)}</title>'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(parts)}'
        f'<text x="8" y="{HEIGHT + 16}">{escape(caption)}</text></svg>\n'
    )


def _panel(panel: Panel, left: float) -> str:
    sizes = [size for curve in panel.curves for size, _ in curve.points]
    bottom = HEIGHT - MARGIN
    drawn = [f'<text x="{left + WIDTH / 2}" y="{HEIGHT - 12}" text-anchor="middle">{escape(panel.axis)}</text>']
    for size in sorted(set(sizes)):
        x = _place(size, sizes, left + MARGIN, left + WIDTH - MARGIN)
        drawn.append(
            f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{escape(show(size, panel.unit))}</text>'
        )
    for number, (curve, colour) in enumerate(zip(panel.curves, COLOURS, strict=False)):
        values = [value for _, value in curve.points]
        points = [
            (_place(size, sizes, left + MARGIN, left + WIDTH - MARGIN), _place(value, values, bottom, MARGIN))
            for size, value in curve.points
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        drawn.append(f'<text x="{left + 8}" y="{16 + 14 * number}" fill="{colour}">{escape(curve.name)}</text>')
        for (x, y), value in zip(points, values, strict=True):
            drawn.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>')
            text = escape(show(value, curve.unit))
            drawn.append(f'<text x="{x + 5:.1f}" y="{y - 5 + 18 * number:.1f}" fill="{colour}">{text}</text>')
    return "".join(drawn)


def _place(value: float, among: Sequence[float], start: float, end: float) -> float:
    """Where a value is between the least and the largest, logarithmically."""
    low, high = math.log(min(among)), math.log(max(among))
    return start if high == low else start + (math.log(value) - low) / (high - low) * (end - start)
