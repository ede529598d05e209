"""Balancing: the product of a layer stays, both conventions agree, and the search finds the best of its candidates."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dexport.passes.quantization.balance import (
    EXPONENTS,
    balanced,
    by_exponents,
    input_span,
    multiplier,
    search,
)
from dexport.passes.quantization.recipe import BalanceSpec, WeightSpec
from dexport.passes.quantization.weights import weight_grid
from dexport.plugins.activations import quantize_rows
from dexport.plugins.formats import format_of


def _rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _w4a4(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return quantize_rows(rows, format_of("int4"), 0) @ weight_grid(weight, WeightSpec(format="int4")).round(weight).T


def test_formulas() -> None:
    x, weight = _rows(32, 6), _rows(4, 6, seed=1)
    absmax, span = x.abs().amax(0), weight.abs().amax(0)
    m = multiplier(absmax, input_span(weight), BalanceSpec(method="smoothquant", alpha=0.7))
    assert torch.allclose(m, span**0.3 / absmax**0.7)
    m = multiplier(absmax, input_span(weight), BalanceSpec(method="vidit-q", alpha=0.7))
    assert torch.allclose(m, span**0.7 / absmax**0.3)


@settings(max_examples=50, deadline=None)
@given(st.floats(0, 1), st.integers(0, 1000))
def test_conventions_are_opposite(alpha: float, seed: int) -> None:
    absmax, weight = _rows(16, seed=seed).abs(), _rows(3, 16, seed=seed + 1)
    one = multiplier(absmax, input_span(weight), BalanceSpec(method="smoothquant", alpha=alpha))
    other = multiplier(absmax, input_span(weight), BalanceSpec(method="vidit-q", alpha=1 - alpha))
    assert torch.allclose(one, other, rtol=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 1), st.floats(0, 1), st.integers(0, 1000))
def test_products_stay(a: float, b: float, seed: int) -> None:
    x, weight = _rows(8, 16, seed=seed) * _rows(16, seed=seed + 1).exp(), _rows(5, 16, seed=seed + 2)
    m = by_exponents(x.abs().amax(0), input_span(weight), a, b)
    assert torch.allclose((x * m) @ balanced(weight, m).T, x @ weight.T, atol=1e-2)


def test_half_and_half_makes_spans_equal() -> None:
    x, weight = _rows(64, 16) * _rows(16, seed=3).exp(), _rows(8, 16, seed=1)
    m = multiplier(x.abs().amax(0), input_span(weight), BalanceSpec(method="smoothquant"))
    assert torch.allclose((x * m).abs().amax(0), input_span(balanced(weight, m)), rtol=1e-5)


def test_dead_channels_are_left_alone() -> None:
    absmax, weight = torch.tensor([0.0, 1, 1e-30, 4]), torch.tensor([[1.0, 0, 1, 1]])
    m = multiplier(absmax, input_span(weight), BalanceSpec(method="smoothquant", alpha=1.0))
    assert torch.equal(m, torch.tensor([1.0, 1, 2.0**14, 0.25]))


def test_kernels_are_divided_per_input_channel() -> None:
    weight, m = _rows(4, 3, 2, 2), torch.tensor([1.0, 2, 4])
    assert torch.equal(balanced(weight, m)[:, 2], weight[:, 2] / 4)
    assert torch.equal(input_span(weight), weight.abs().amax((0, 2, 3)))


def test_search_has_the_published_candidates() -> None:
    assert len(EXPONENTS) == len(set(EXPONENTS)) == 39 and EXPONENTS[0] == (0, 0)
    assert all(b in (0, pytest.approx(1 - a)) for a, b in EXPONENTS)


def test_search_finds_the_best() -> None:
    x, weight = _rows(256, 64), _rows(32, 64, seed=1)
    x[:, :3] *= 30
    absmax = x.abs().amax(0)
    found = search(absmax, weight, x, _w4a4)
    exact = x @ weight.T

    def error(a: float, b: float) -> float:
        m = by_exponents(absmax, input_span(weight), a, b)
        return float((_w4a4(x * m, balanced(weight, m)) - exact).square().mean())

    assert found.error == pytest.approx(min(error(*each) for each in EXPONENTS), rel=1e-4)
    assert found.error == pytest.approx(error(*found.exponents), rel=1e-4)
    assert found.error < 0.5 * found.unbalanced and found.unbalanced == pytest.approx(error(0, 0), rel=1e-4)
    assert torch.allclose(found.multiplier, by_exponents(absmax, input_span(weight), *found.exponents))


def test_search_leaves_what_is_exact() -> None:
    found = search(torch.ones(4), torch.ones(2, 4), torch.ones(3, 4), lambda x, w: x @ w.T)
    assert found.exponents == (0, 0) and found.error == 0


def test_search_needs_rows() -> None:
    with pytest.raises(ValueError, match="there are none"):
        search(torch.ones(4), torch.ones(2, 4), torch.ones(0, 4), _w4a4)


def test_only_formulas_have_a_multiplier() -> None:
    with pytest.raises(ValueError, match="'search' has no formula"):
        multiplier(torch.ones(4), torch.ones(2, 4), BalanceSpec(method="search"))
