"""The low-rank branch: exact parts, errors that fall, and outliers that it takes out of a layer's way."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dexport.passes.quantization.balance import balanced, by_exponents, input_span
from dexport.passes.quantization.low_rank import LowRank, low_rank_split, low_rank_split_shared
from dexport.passes.quantization.recipe import WeightSpec
from dexport.passes.quantization.weights import weight_grid
from dexport.plugins.activations import quantize_rows
from dexport.plugins.formats import format_of


def _rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _int4(weight: torch.Tensor) -> torch.Tensor:
    return weight_grid(weight, WeightSpec(format="int4")).round(weight)


def _int4_rows(rows: torch.Tensor) -> torch.Tensor:
    return quantize_rows(rows, format_of("int4"), 0)


def _output(rows: torch.Tensor, split: LowRank) -> torch.Tensor:
    return _int4_rows(rows) @ _int4(split.residual).T + rows @ split.down.float().T @ split.up.float().T


def _decibels(exact: torch.Tensor, found: torch.Tensor) -> float:
    return float(10 * torch.log10(exact.square().sum() / (found - exact).square().sum()))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 8), st.sampled_from([1, 4]))
def test_parts_add_up(seed: int, rank: int, iterations: int) -> None:
    weight = _rows(12, 16, seed=seed)
    split = low_rank_split(weight, rank, iterations, _int4)
    assert split.down.shape == (rank, 16) and split.up.shape == (12, rank) and split.up.dtype == torch.float16
    assert torch.allclose(split.up.float() @ split.down.float() + split.residual, weight, atol=1e-6)  # in spite of fp16 factors


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_the_unquantized_error_falls_with_the_rank(seed: int) -> None:
    weight = _rows(12, 16, seed=seed)
    norms = [float(low_rank_split(weight, rank, 1, _int4, dtype=torch.float32).residual.norm()) for rank in range(1, 13)]
    assert all(b <= a for a, b in itertools.pairwise(norms)) and norms[-1] < 1e-4


def test_repeating_helps_and_stops() -> None:
    weight = _rows(64, 96)
    once, often = (low_rank_split(weight, 8, count, _int4) for count in (1, 100))
    assert len(once.errors) == 1 and min(often.errors) < once.errors[0] and len(often.errors) < 100
    assert list(often.errors[:-1]) == sorted(often.errors[:-1], reverse=True) and often.errors[-1] >= often.errors[-2]
    lost = often.residual - _int4(often.residual)
    assert float(lost.square().mean()) == pytest.approx(min(often.errors), rel=1e-4)  # the factors are those of the best iteration


def test_rows_measure_the_output() -> None:
    weight, rows = _rows(32, 48), _rows(64, 48, seed=1)
    split = low_rank_split(weight, 4, 5, _int4, rows, _int4_rows)
    error = float((_output(rows, split) - rows @ weight.T).square().mean())
    assert error == pytest.approx(min(split.errors), rel=1e-4)


@pytest.mark.parametrize("block", [0, 64])
def test_planted_outliers_cost_nothing_with_the_branch(block: int) -> None:
    """4 of 384 input channels are 20 times as large, and smoothing has moved them into the weight: at least 6 dB at W4A4."""
    spec = WeightSpec(format="int4", granularity=f"block-{block}" if block else "channel")
    rows, weight = _rows(1024, 384), _rows(384, 384, seed=1) / 384**0.5
    rows[:, [7, 97, 187, 277]] *= 20
    m = by_exponents(rows.abs().amax(0), input_span(weight), 1.0, 0.0)
    smooth, heavy, exact = rows * m, balanced(weight, m), rows @ weight.T

    def quantize(w: torch.Tensor) -> torch.Tensor:
        return weight_grid(w, spec).round(w)

    def activations(x: torch.Tensor) -> torch.Tensor:
        return quantize_rows(x, format_of("int4"), block)

    plain = _decibels(exact, activations(smooth) @ quantize(heavy).T)
    split = low_rank_split(heavy, 32, 10, quantize, smooth[:256], activations)
    output = activations(smooth) @ quantize(split.residual).T + smooth @ split.down.float().T @ split.up.float().T
    assert _decibels(exact, output) >= plain + 6


def test_large_matrices_are_nearly_as_good() -> None:
    """Past the size that is decomposed exactly: within 1 % of the best possible, from a cold start and from a warm one."""
    weight = _rows(300, 400) @ torch.diag(torch.linspace(3, 0.3, 400))
    best = float(torch.linalg.svdvals(weight)[16:].norm())
    split = low_rank_split(weight, 16, 1, _int4, dtype=torch.float32)
    assert best <= float(split.residual.norm()) <= 1.01 * best
    again = low_rank_split(weight, 16, 2, lambda w: torch.zeros_like(w), dtype=torch.float32)
    assert float(again.residual.norm()) <= 1.01 * best
    assert torch.equal(split.residual, low_rank_split(weight, 16, 1, _int4, dtype=torch.float32).residual)


def test_sites_share_one_down_projection() -> None:
    weights = [_rows(12, 32, seed=1), _rows(20, 32, seed=2)]
    rows = _rows(40, 32)
    parts = low_rank_split_shared(weights, 4, 3, _int4, rows, _int4_rows)
    assert parts[0].down is parts[1].down and [p.up.shape[0] for p in parts] == [12, 20]
    for weight, part in zip(weights, parts):
        assert torch.allclose(part.up.float() @ part.down.float() + part.residual, weight, atol=1e-6)
    both = torch.cat([_output(rows, part) for part in parts], 1)
    assert float((both - rows @ torch.cat(weights).T).square().mean()) == pytest.approx(min(parts[0].errors), rel=1e-4)


def test_says_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="rank 9: expected 1 to 8"):
        low_rank_split(_rows(8, 16), 9, 1, _int4)
    with pytest.raises(ValueError, match="0 iterations"):
        low_rank_split(_rows(8, 16), 2, 0, _int4)
    with pytest.raises(ValueError, match="only linears"):
        low_rank_split(_rows(8, 16, 3, 3), 2, 1, _int4)
    with pytest.raises(ValueError, match="do not share"):
        low_rank_split_shared([_rows(8, 16), _rows(8, 12)], 2, 1, _int4)
