"""GPTQ: never worse than nearest rounding on its rows, much better on channels that agree, in every format."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dexport.passes.quantization.gptq import gptq
from dexport.passes.quantization.recipe import WeightSpec
from dexport.passes.quantization.weights import WeightGrid, dequantize, weight_grid

SPECS = (
    WeightSpec(format="int4"),
    WeightSpec(format="int4", granularity="block-16"),
    WeightSpec(format="int2", granularity="tensor"),
    WeightSpec(format="e2m1", range="mse"),
    WeightSpec(format="nvfp4"),
    WeightSpec(format="mxfp4"),
    WeightSpec(format="int8"),
)


def _rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _alike(count: int, inputs: int, seed: int = 0) -> torch.Tensor:
    """Rows whose channels follow a few common causes."""
    return _rows(count, 6, seed=seed) @ _rows(6, inputs, seed=seed + 1) + 0.3 * _rows(count, inputs, seed=seed + 2)


def _errors(weight: torch.Tensor, real: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return (rows @ (real - weight).T).square().sum(0)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(SPECS), st.sampled_from([3, 20, 100]))
def test_no_output_is_worse_than_nearest(seed: int, spec: WeightSpec, count: int) -> None:
    weight, rows = _rows(5, 64, seed=seed), _alike(count, 64, seed)
    grid = weight_grid(weight, spec)
    real = dequantize(gptq(weight, rows, grid))
    assert (_errors(weight, real, rows) <= _errors(weight, grid.round(weight), rows) * 1.0001 + 1e-9).all()
    assert torch.allclose(grid.round(real), real)  # on the grid


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.format}-{s.granularity}")
def test_helps_where_channels_agree(spec: WeightSpec) -> None:
    weight, rows = _rows(32, 64), _alike(512, 64)
    grid = weight_grid(weight, spec)
    found, nearest = dequantize(gptq(weight, rows, grid)), grid.round(weight)
    assert _errors(weight, found, rows).sum() < 0.4 * _errors(weight, nearest, rows).sum()
    fresh = _alike(512, 64) + 0.01 * _rows(512, 64, seed=9)
    assert _errors(weight, found, fresh).sum() < 0.5 * _errors(weight, nearest, fresh).sum()


def test_blocks_of_columns_change_nothing() -> None:
    weight, rows = _rows(8, 96), _alike(200, 96)
    grid = weight_grid(weight, WeightSpec(format="int4"))
    whole, parts = (gptq(weight, rows, grid, block=block) for block in (96, 7))
    assert (whole.codes != parts.codes).float().mean() < 0.02  # sums in another order decide ties


def test_follows_the_definition() -> None:
    """Two columns, by hand: the second one is rounded after it has taken back what the first one lost."""
    rows = torch.tensor([[1.0, 1.0], [1.0, 0.9]])
    grid = WeightGrid("int8", torch.ones(1, 1))
    found = gptq(torch.tensor([[0.4, 0.3]]), rows, grid)
    # 0.4 -> 0; with H = [[2, 1.9], [1.9, 1.81]] the second becomes 0.3 + 0.4 * 1.9 / 1.81 (less by the damping) -> 1
    assert found.codes.tolist() == [[0, 1]]


def test_unused_inputs_are_harmless() -> None:
    weight, rows = _rows(4, 16), _rows(30, 16)
    rows[:, 3] = 0
    grid = weight_grid(weight, WeightSpec(format="int4"))
    assert torch.isfinite(dequantize(gptq(weight, rows, grid))).all()
    silent = gptq(weight, torch.zeros(5, 16), grid)
    assert torch.equal(dequantize(silent), grid.round(weight))


def test_says_what_is_wrong() -> None:
    grid = weight_grid(_rows(4, 16), WeightSpec(format="int4"))
    with pytest.raises(ValueError, match=r"got \(3, 8\) for \(4, 16\)"):
        gptq(_rows(4, 16), _rows(3, 8), grid)
