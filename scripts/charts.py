"""Small charts side by side, drawn by Pillow: curves over numbers of tokens, bytes, scales, values."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from fastshape.geometry.optional import require

Curve = Sequence[tuple[float, float | None]]
"""Points of a curve from left to right; None where there is a gap."""

PANEL = (420, 300)
MARGIN = (64, 40, 24, 40)  # left, top, right, bottom of a panel
SCALE = 2  # drawn larger and shrunk, which smooths the lines
COLORS = ((31, 90, 160), (200, 80, 30), (60, 140, 70), (140, 70, 150), (120, 100, 40), (90, 160, 170))
INK, FAINT, BESIDE = (40, 40, 40), (225, 225, 225), (120, 120, 120)
DASH = 6.0  # its length, and that of the gap behind it
DOTTED = 24  # points, beyond which a curve has no dots
DASHED = ("floor", "normal")  # what is drawn beside the curves, as a dashed line


@dataclass(frozen=True)
class Panel:
    """A chart: name -> curve."""

    title: str
    series: Mapping[str, Curve]
    logarithmic: bool = False


def draw(
    panels: Sequence[Panel], title: str, *, marks: Sequence[float] | None = None, logarithmic: bool = True
) -> bytes:
    """All panels as a PNG, three a row.

    Args:
        panels: with one horizontal axis.
        title: a line above everything.
        marks: what is written below the horizontal axis; None: round numbers.
        logarithmic: the horizontal axis.
    """
    places = [x for panel in panels for curve in panel.series.values() for x, _ in curve]
    chart = _Chart(title, len(panels))
    axis = marks or ticks(min(places), max(places), logarithmic)
    for number, panel in enumerate(panels):
        chart.panel(panel, number, axis, logarithmic)
    return chart.png()


def ticks(low: float, high: float, logarithmic: bool) -> list[float]:
    """Round numbers, ascending, the first not above `low` and the last not below `high`."""
    if logarithmic:
        low = max(low, 1e-9)
        close = high < 1000 * low
        steps = [m * 10.0**e for e in range(-10, 14) for m in ((1, 2, 5) if close else (1,))]
        first = max(i for i, step in enumerate(steps) if step <= low * (1 + 1e-9))
        last = min(i for i, step in enumerate(steps) if step >= high * (1 - 1e-9))
        return steps[first : max(last, first + 1) + 1]
    span = max(high - low, 0.1)  # shares: what is smaller is mostly the noise of sampling
    power = 10.0 ** math.floor(math.log10(span))
    step = next(m * power for m in (0.2, 0.5, 1, 2) if span / (m * power) <= 6)
    first = math.floor(low / step + 1e-9)
    return [index * step for index in range(first, math.ceil((low + span) / step - 1e-9) + 1)]


def _scale(axis: Sequence[float], begin: float, end: float, logarithmic: bool) -> Callable[[float], float]:
    """From a value to its place between `begin`, the first of the axis, and `end`, the last."""
    convert = math.log if logarithmic else float
    low, high = convert(axis[0]), convert(axis[-1])
    return lambda value: begin + (end - begin) * (convert(value) - low) / ((high - low) or 1.0)


def _color(place: int, name: str) -> tuple[int, int, int]:
    return BESIDE if name in DASHED else COLORS[place % len(COLORS)]


class _Chart:
    def __init__(self, title: str, number: int) -> None:
        self.image_module = require("PIL.Image", "image", "drawing a chart")
        draw_module = require("PIL.ImageDraw", "image", "drawing a chart")
        font_module = require("PIL.ImageFont", "image", "drawing a chart")
        self.font = font_module.load_default(13 * SCALE)
        width = max(min(number, 3) * PANEL[0], round(self.width(title)) + 2 * MARGIN[0])
        height = 36 + -(-number // 3) * PANEL[1]
        self.picture = self.image_module.new("RGB", (width * SCALE, height * SCALE), (255, 255, 255))
        self.pen = draw_module.Draw(self.picture)
        self.text(MARGIN[0], 18, title, "lm")

    def text(self, x: float, y: float, words: str, anchor: str, color: Any = INK) -> None:
        self.pen.text((x * SCALE, y * SCALE), words, fill=color, font=self.font, anchor=anchor)

    def width(self, words: str) -> float:
        return float(self.font.getlength(words)) / SCALE

    def line(self, ends: Sequence[tuple[float, float]], color: Any, width: float = 1.0) -> None:
        self.pen.line([(x * SCALE, y * SCALE) for x, y in ends], fill=color, width=round(width * SCALE))

    def panel(self, panel: Panel, number: int, axis: Sequence[float], logarithmic: bool) -> None:
        left, top = PANEL[0] * (number % 3) + MARGIN[0], 36 + PANEL[1] * (number // 3) + MARGIN[1]
        right, bottom = left + PANEL[0] - MARGIN[0] - MARGIN[2], top + PANEL[1] - MARGIN[1] - MARGIN[3]
        self.text(left, top - 26, panel.title, "lm")
        known = [y for curve in panel.series.values() for _, y in curve if y is not None]
        marks = ticks(min(known, default=0.0), max(known, default=1.0), panel.logarithmic)
        across = _scale(axis, left, right, logarithmic)
        up = _scale(marks, bottom, top, panel.logarithmic)
        for mark in marks:
            self.line([(left, up(mark)), (right, up(mark))], FAINT)
            self.text(left - 6, up(mark), f"{mark:.6g}", "rm")
        for mark in axis:
            self.line([(across(mark), bottom), (across(mark), bottom + 4)], INK)
            self.text(across(mark), bottom + 8, f"{mark:.6g}", "mt")
        self.line([(left, bottom), (right, bottom)], INK)
        for place, (name, curve) in enumerate(panel.series.items()):
            points = [(across(x), up(y)) for x, y in curve if y is not None]
            self.series(points, _color(place, name), dashed=name in DASHED)
        end = right
        for place, name in reversed(list(enumerate(panel.series)) if len(panel.series) > 1 else []):
            self.text(end, top - 10, name, "rm", _color(place, name))
            end -= self.width(name) + 14

    def series(self, points: Sequence[tuple[float, float]], color: Any, dashed: bool) -> None:
        for number, ((x0, y0), (x1, y1)) in enumerate(pairwise(points)):
            if dashed and len(points) > DOTTED and number % 2:
                continue
            many = round(math.hypot(x1 - x0, y1 - y0) / DASH)
            pieces = many + 1 - many % 2 if dashed else 1  # a dash at either end
            for piece in range(0, pieces, 2):
                ends = [piece / pieces, (piece + 1) / pieces]
                self.line([(x0 + (x1 - x0) * t, y0 + (y1 - y0) * t) for t in ends], color, 2)
        for x, y in points if not dashed and len(points) <= DOTTED else ():
            box = [(x - 3) * SCALE, (y - 3) * SCALE, (x + 3) * SCALE, (y + 3) * SCALE]
            self.pen.ellipse(box, fill=color)

    def png(self) -> bytes:
        size = (self.picture.width // SCALE, self.picture.height // SCALE)
        buffer = io.BytesIO()
        self.picture.resize(size, self.image_module.LANCZOS).save(buffer, format="PNG", optimize=True)
        return buffer.getvalue()
