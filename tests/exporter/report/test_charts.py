"""Axes of charts: round numbers that hold all values; lines inside the frame."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dexport.exporter.report.charts import line_chart, nice_ticks


@settings(max_examples=200, deadline=None)
@given(st.floats(-100, 100), st.floats(0.1, 100))
def test_ticks_are_few_even_and_hold_the_values(low: float, size: float) -> None:
    high = low + size
    ticks = nice_ticks(low, high)
    assert 2 <= len(ticks) <= 7
    step = ticks[1] - ticks[0]
    assert [b - a for a, b in itertools.pairwise(ticks)] == pytest.approx([step] * (len(ticks) - 1))
    assert ticks[0] <= low + 1e-6 * step and high <= ticks[-1] + 1e-6 * step
    assert ticks[0] > low - step * 1.001 and ticks[-1] < high + step * 1.001


@settings(max_examples=200, deadline=None)
@given(st.floats(-1, 1), st.floats(0, 2))
def test_a_cosine_never_gets_a_tick_above_one(low: float, size: float) -> None:
    ticks = nice_ticks(low, min(1.0, low + size), highest=1.0)
    assert len(ticks) >= 2 and ticks[-1] <= 1 and ticks[0] <= low + 1e-9


def test_flat_lines_have_an_axis() -> None:
    assert nice_ticks(1.0, 1.0, highest=1.0)[-1] == 1.0
    assert nice_ticks(100.0, 100.0, highest=100.0)[-1] == 100.0
    assert len(nice_ticks(0.0, 0.0)) >= 2
    for value in (1.0, 100.0):
        assert all(len(tick.label) <= 7 for tick in line_chart("x", [value] * 3, highest=value).y_ticks), "labels fit beside the chart"


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=1, max_size=60))
def test_lines_stay_in_their_frame(values: list[float]) -> None:
    chart = line_chart("x", values)
    numbers = [float(number) for number in re.findall(r"[-\d.]+", chart.path)]
    assert len(numbers) == 2 * len(values) == 2 * len(chart.dots)
    assert all(chart.left - 0.1 <= x <= chart.right + 0.1 for x in numbers[::2])
    assert all(chart.top - 0.1 <= y <= chart.bottom + 0.1 for y in numbers[1::2])
    steps = [int(tick.label) for tick in chart.x_ticks]
    assert steps[0] == 1 and steps[-1] == len(values) and len(steps) <= 8


def test_labels_tell_ticks_apart() -> None:
    chart = line_chart("x", [1.0, 0.9991, 0.99905], highest=1.0)
    labels = [tick.label for tick in chart.y_ticks]
    assert labels == sorted(set(labels)) and labels[-1].startswith("1.000")
    assert [dot[2] for dot in chart.dots] == ["step 1: 1", "step 2: 0.9991", "step 3: 0.99905"]
