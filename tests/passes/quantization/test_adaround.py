"""Soft rounding: it starts at the weight, stays between neighbours and ends on the grid."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dexport.passes.quantization.adaround import neighbours, soft_rounding, undecided
from dexport.passes.quantization.recipe import WeightSpec
from dexport.passes.quantization.weights import dequantize, weight_grid
from dexport.plugins.formats import format_of

NAMES = ("int8", "int4", "int2", "e2m1", "e1m2", "e3m0", "e4m3", "nvfp4", "mxfp4")


def _weight(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(NAMES), st.booleans())
def test_starts_at_the_weight(seed: int, name: str, scale_aware: bool) -> None:
    weight = _weight(4, 32, seed=seed)
    grid = weight_grid(weight, WeightSpec(format=name))
    soft = soft_rounding(weight, grid, scale_aware)
    # the scales of two-level formats are rounded: what lies beyond the range is clipped to it
    clipped = weight.clamp(grid.number.lowest * soft.steps, grid.number.largest * soft.steps)
    assert torch.allclose(soft.weight(soft.start), clipped, atol=1e-5)
    nearest = grid.round(weight)
    hard = dequantize(soft.hard(soft.start))
    assert torch.allclose((hard - clipped).abs(), (nearest - clipped).abs(), atol=1e-5)  # the same but for ties


@pytest.mark.parametrize("name", ["e2m1", "e1m2", "e3m0", "e3m2"])
def test_neighbours_are_those_of_the_grid(name: str) -> None:
    number = format_of(name)
    grid = number.grid().unique()
    x = torch.linspace(number.lowest, number.largest, 501)[:-1]
    lower, gap = neighbours(x, number)
    index = torch.searchsorted(grid, x, right=True)
    assert torch.equal(lower, grid[index - 1]) and torch.equal(lower + gap, grid[index])


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(NAMES), st.sampled_from([-9.0, -1.0, 1.0, 9.0]))
def test_any_choice_is_on_the_grid(seed: int, name: str, v: float) -> None:
    weight = _weight(2, 32, seed=seed)
    grid = weight_grid(weight, WeightSpec(format=name))
    soft = soft_rounding(weight, grid)
    real = dequantize(soft.hard(torch.full_like(soft.start, v)))
    assert torch.allclose(grid.round(real), real, atol=1e-6)
    assert torch.allclose(real, soft.weight(torch.full_like(soft.start, 99.0 if v >= 0 else -99.0)), atol=1e-6)


def test_kernels_have_neighbours_too() -> None:
    weight = _weight(4, 3, 2, 2)
    soft = soft_rounding(weight, weight_grid(weight, WeightSpec(format="int4")))
    assert torch.allclose(soft.weight(soft.start), weight, atol=1e-5) and soft.hard(soft.start).codes.shape == weight.shape


def test_scale_awareness_slows_large_steps_down() -> None:
    weight = torch.tensor([[0.6, 5.0, -6.0]])  # in e2m1, between 0.5 and 1, and between 4 and 6
    grid = weight_grid(weight, WeightSpec(format="e2m1"))
    plain, aware = (soft_rounding(weight, grid, each) for each in (False, True))
    assert torch.allclose(plain.weight(plain.start), aware.weight(aware.start), atol=1e-6)
    assert float(aware.divisor[0, 1]) == pytest.approx(4 * float(aware.divisor[0, 0])) and float(aware.divisor.mean()) == pytest.approx(1)
    moved = [(s.up(s.start + 0.1) - s.up(s.start))[0, :2] for s in (plain, aware)]
    assert moved[1][1] < moved[0][1] and moved[1][0] > moved[0][0]


def test_the_regulariser_is_zero_where_all_is_decided() -> None:
    assert float(undecided(torch.tensor([0.0, 1.0, 1.0]), 2.0)) == 0
    assert float(undecided(torch.tensor([0.5, 0.0]), 20.0)) == 1
    up = torch.tensor([0.9, 0.5], requires_grad=True)
    undecided(up, 20.0).backward()
    assert up.grad is not None and up.grad[0] < 0 and up.grad[1] == 0
