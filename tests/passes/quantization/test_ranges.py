"""Scales of weights: what each range does, and that searches find the least error."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dexport.passes.quantization.ranges import FLOAT_SHRINKS, SHRINKS, float_search, weight_scale
from dexport.plugins.formats import format_of

INT4, INT8, E2M1, E1M2 = (format_of(name) for name in ("int4", "int8", "e2m1", "e1m2"))


def _weight(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _error(x: torch.Tensor, scale: torch.Tensor, power: float = 2.0) -> float:
    return float((INT4.round(x / scale) * scale - x).abs().pow(power).sum())


def test_minmax_per_group() -> None:
    weight = _weight(6, 8, 3)
    assert torch.equal(weight_scale(weight, INT8, "tensor"), (weight.abs().amax() / 127).reshape(1, 1, 1))
    assert torch.equal(weight_scale(weight, INT8, "channel"), weight.abs().amax((1, 2), keepdim=True) / 127)
    blocks = weight_scale(weight[..., 0], INT8, "block-4")
    assert torch.equal(blocks[2, 1], weight[2, 4:, 0].abs().amax() / 127) and blocks.shape == (6, 2)


def test_mse_is_the_best_of_its_candidates() -> None:
    x = _weight(1, 500) ** 3
    scale = weight_scale(x, INT4, "channel", "mse")
    full = x.abs().amax() / 7
    errors = [_error(x, full * shrink, 2.4) for shrink in SHRINKS]
    assert float(scale) == pytest.approx(float(full) * SHRINKS[errors.index(min(errors))], rel=1e-6)
    assert len(SHRINKS) == 80 and min(errors) < 0.95 * errors[0]  # a long tail is worth clipping


def test_every_group_is_searched_by_itself() -> None:
    weight = torch.cat([_weight(3, 64), 100 * _weight(3, 64, seed=1)]) ** 3
    together = weight_scale(weight, INT4, "channel", "mse")
    alone = torch.cat([weight_scale(row[None], INT4, "channel", "mse") for row in weight])
    assert torch.allclose(together, alone, rtol=1e-6)


def test_large_tensors_are_searched_in_pieces() -> None:
    """A group larger than a piece has the error of all of its numbers: the small end of it alone would choose another scale."""
    weight = torch.cat([_weight(1, 50_000) * 0.01, _weight(1, 50_000, seed=1)], 1)
    scale = weight_scale(weight, INT4, "tensor", "mse")
    errors = [_error(weight, weight.abs().amax() / 7 * shrink, 2.4) for shrink in SHRINKS]
    assert float(scale) == pytest.approx(float(weight.abs().amax()) / 7 * SHRINKS[errors.index(min(errors))], rel=1e-5)


def test_percentile_leaves_the_largest_out() -> None:
    x = torch.arange(1, 1001).float()[None] * torch.tensor([1, -1]).repeat(500)
    assert float(weight_scale(x, INT8, "channel", "percentile-99.9")) == pytest.approx(999 / 127)
    assert float(weight_scale(x, INT8, "channel", "percentile-50")) == pytest.approx(500 / 127)
    assert float(weight_scale(x, INT8, "tensor", "percentile-100")) == pytest.approx(1000 / 127)


def test_float_search_covers_more_than_the_range() -> None:
    assert len(FLOAT_SHRINKS) == 111 and FLOAT_SHRINKS[0] == pytest.approx(0.1) and FLOAT_SHRINKS[-1] == pytest.approx(1.2)
    x = torch.tensor([[5.0, -4.0, 3.0, 5.0]])  # at 6/5 of its range this is exactly on the grid of e2m1 up to one number
    number, scale = float_search(x, [E2M1], "channel")
    assert number is E2M1 and float(E2M1.round(x / scale).mul(scale).sub(x).square().sum()) < _error_at_full_range(x)


def _error_at_full_range(x: torch.Tensor) -> float:
    scale = x.abs().amax() / E2M1.largest
    return float((E2M1.round(x / scale) * scale - x).square().sum())


def test_float_search_chooses_the_format_that_fits() -> None:
    evenly = torch.linspace(-1, 1, 15).repeat(4)[None]  # the grid of e1m2
    by_powers = 2.0 ** torch.arange(-2, 5).float().repeat(4)[None]  # the grid of e3m0
    formats = [E2M1, E1M2, format_of("e3m0")]
    assert float_search(evenly, formats)[0].name == "e1m2"
    assert float_search(by_powers, formats)[0].name == "e3m0"


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 1000),
    st.sampled_from(["minmax", "mse", "percentile-90", "float-search"]),
    st.sampled_from(["tensor", "channel", "block-4"]),
)
def test_scales_are_positive_and_follow_the_weight(seed: int, range: str, granularity: str) -> None:
    weight = _weight(4, 8, seed=seed)
    weight[1] = 0
    scale = weight_scale(weight, INT4, granularity, range)
    assert (scale > 0).all()
    if range == "mse":  # the error's power makes rounding decide between candidates that are nearly equal
        return
    live = weight_scale(weight * 4, INT4, granularity, range) / scale
    assert ((live - 4).abs() < 1e-5).logical_or(live == 1).all()  # groups of zeros keep the scale 1


@pytest.mark.parametrize(
    ("granularity", "range", "message"),
    [
        ("rows", "minmax", "tensor, channel or block-N"),
        ("block-5", "minmax", "8 inputs are no multiple of the block of 5"),
        ("channel", "median", "minmax, mse, percentile-P"),
        ("channel", "percentile-101", "at most 100"),
        ("channel", "percentile-x", "at most 100"),
    ],
)
def test_says_what_is_wrong(granularity: str, range: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        weight_scale(_weight(4, 8), INT4, granularity, range)


def test_blocks_are_for_linears() -> None:
    with pytest.raises(ValueError, match="not one with a kernel"):
        weight_scale(_weight(4, 8, 3, 3), INT4, "block-4")
