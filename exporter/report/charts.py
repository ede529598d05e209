"""Geometry of the report's charts: where lines, ticks and labels stand. The template draws them; the style sheet colours them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 340, 190
"""Units of the drawing; on a phone one is about one pixel, so that text keeps its size."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 12, 34
_TICKS = 4
_LEAST_SPREAD = 5e-4  # of an axis, relative to its values: labels stay short, and rounding errors look like none
_NICE = (1, 2, 2.5, 5, 10)


@dataclass(frozen=True)
class Tick:
    """A line across the chart and its label."""

    at: float
    label: str


@dataclass(frozen=True)
class LineChart:
    """One line over steps.

    Attributes:
        points: the line, as an SVG path.
        dots: (x, y, what it says) of every step.
        x_ticks, y_ticks: labels of the axes.
    """

    title: str
    path: str
    dots: tuple[tuple[float, float, str], ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    top: int = _TOP
    bottom: int = HEIGHT - _BOTTOM


def line_chart(title: str, values: Sequence[float], *, highest: float | None = None) -> LineChart:
    """A chart of one value per step.

    Args:
        values: at least one.
        highest: where the values end by nature, such as 1 for a cosine: the axis goes no further.
    """
    ticks = nice_ticks(min(values), max(values), highest)
    low, high = ticks[0], ticks[-1]
    steps = len(values)
    xs = [_LEFT + (WIDTH - _LEFT - _RIGHT) * (step / (steps - 1) if steps > 1 else 0.5) for step in range(steps)]
    ys = [_height_of(value, low, high) for value in values]
    path = "M" + " L".join(f"{x:.1f} {y:.1f}" for x, y in zip(xs, ys))
    dots = tuple((round(x, 1), round(y, 1), f"step {step}: {value:.6g}") for step, (x, y, value) in enumerate(zip(xs, ys, values), 1))
    stride = max(1, math.ceil(steps / 6))
    shown = [step for step in range(steps) if step % stride == 0 and (steps - 1 - step >= stride * 0.7 or step == steps - 1)]
    shown += [steps - 1] if shown[-1] != steps - 1 else []
    decimals = _decimals(ticks)
    return LineChart(
        title,
        path,
        dots,
        tuple(Tick(round(xs[step], 1), str(step + 1)) for step in shown),
        tuple(Tick(round(_height_of(tick, low, high), 1), f"{tick:.{decimals}f}") for tick in ticks),
    )


def nice_ticks(low: float, high: float, highest: float | None = None) -> list[float]:
    """Round numbers, evenly spaced, that span [low, high] and do not pass `highest`, itself round; at least two."""
    spread = max(high - low, _LEAST_SPREAD * max(abs(high), abs(low)), 1e-9)
    magnitude = 10.0 ** math.floor(math.log10(spread / _TICKS))
    step = next(magnitude * factor for factor in _NICE if magnitude * factor * _TICKS >= spread)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if first == last:  # a flat line on a tick
        first, last = (first - 1, last) if highest is not None and (last + 1) * step > highest else (first, last + 1)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _height_of(value: float, low: float, high: float) -> float:
    return _TOP + (HEIGHT - _TOP - _BOTTOM) * (high - value) / (high - low)


def _decimals(ticks: Sequence[float]) -> int:
    """Digits that tell neighbouring ticks apart."""
    step = ticks[1] - ticks[0]
    return next((digits for digits in range(10) if abs(round(step, digits) - step) < 1e-6 * step), 10)
