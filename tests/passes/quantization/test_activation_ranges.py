"""Scales of activations from statistics, against the same question asked of the numbers themselves."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dexport.passes.quantization.activation_ranges import Distribution, activation_range, histogram_range, pooled, step
from dexport.passes.quantization.ranges import weight_scale
from dexport.passes.quantization.recipe import ActivationSpec
from dexport.passes.quantization.statistics import BINS, SiteStatistics
from dexport.plugins.formats import format_of

INT8, INT4 = format_of("int8"), format_of("int4")


def _numbers(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def _distribution(x: torch.Tensor) -> Distribution:
    limit = 2.0 ** float(torch.log2(x.abs().amax()).ceil())
    histogram = torch.histc(x, BINS, -limit, limit).long()
    return Distribution(histogram, torch.tensor(limit), x.amin(), x.amax())


def _seen(steps: torch.Tensor) -> SiteStatistics:
    """Statistics of activations [T, N, C], each token one row."""
    each = [_distribution(x.flatten()) for x in steps]
    return SiteStatistics(
        count=torch.full((len(steps),), steps.shape[1]),
        minimum=steps.amin(1),
        maximum=steps.amax(1),
        mean=steps.mean(1),
        square=steps.square().mean(1),
        histogram=torch.stack([d.histogram for d in each]),
        limit=torch.stack([d.limit for d in each]),
        token_minimum=steps.amin(2),
        token_maximum=steps.amax(2),
        rows=steps.flatten(0, 1),
        row_steps=torch.arange(len(steps)).repeat_interleave(steps.shape[1]),
    )


@pytest.fixture(scope="module")
def seen() -> SiteStatistics:
    """Four steps whose width and middle move."""
    width, middle = torch.tensor([8.0, 4, 1, 0.25]), torch.tensor([0.0, 1, 2, 3])
    return _seen(_numbers(4 * 64 * 32).reshape(4, 64, 32) * width[:, None, None] + middle[:, None, None])


def _error(x: torch.Tensor, found: tuple[torch.Tensor, torch.Tensor | None], number: Any = INT4, power: float = 2.4) -> float:
    scale, centre = found
    moved = x if centre is None else x - centre
    return float((number.round(moved / scale) * scale - moved).abs().pow(power).mean())


def test_minmax_is_exact(seen: SiteStatistics) -> None:
    static = activation_range(seen, ActivationSpec(format="int8"))
    assert static.centre is None and float(static.scale) == pytest.approx(float(seen.absmax.amax()) / 127)
    table = activation_range(seen, ActivationSpec(format="int8", mode="table"))
    assert torch.allclose(table.scale, seen.absmax.amax(1) / 127)


def test_a_centre_halves_what_is_far_from_zero(seen: SiteStatistics) -> None:
    found = activation_range(seen, ActivationSpec(format="int8", mode="table", centred=True))
    low, high = seen.minimum.amin(1), seen.maximum.amax(1)
    assert found.centre is not None
    assert torch.allclose(found.centre, (low + high) / 2) and torch.allclose(found.scale, (high - low) / 254)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("name", ["int4", "int8", "e4m3", "e2m1"])
def test_mse_from_a_histogram_is_as_good_as_from_the_numbers(name: str, centred: bool) -> None:
    number = format_of(name)
    x = _numbers(20_000) * _numbers(20_000, seed=1).mul(0.5).exp() + 1
    found = histogram_range(_distribution(x), number, "mse", centred)
    moved = x - (x.amin() + x.amax()) / 2 if centred else x
    exact = weight_scale(moved[None], number, "tensor", "mse")[0, 0]
    assert _error(x, found, number) <= 1.05 * _error(moved, (exact, None), number)


def test_moving_each_end_helps_what_is_lopsided() -> None:
    x = -torch.rand(20_000, generator=torch.Generator().manual_seed(0)).clamp(min=1e-6).log()  # one hard edge and one tail
    seen = _distribution(x)
    full = histogram_range(seen, INT4, "minmax", True)
    found = histogram_range(seen, INT4, "mse", True)
    shrunk = min(_error(x, (full[0] * (1 - k / 100), full[1])) for k in range(80))
    assert _error(x, found) < 0.9 * shrunk


def test_percentiles() -> None:
    x = torch.linspace(-1, 3, 40_001)
    seen = _distribution(x)
    scale, _ = histogram_range(seen, INT8, "percentile-90", False)
    assert float(scale) * 127 == pytest.approx(2.6, abs=0.01)  # 90 % of the magnitudes are below
    scale, centre = histogram_range(seen, INT8, "percentile-90", True)
    assert centre is not None and float(centre) == pytest.approx(1, abs=0.01) and float(scale) * 127 == pytest.approx(1.8, abs=0.01)
    scale, _ = histogram_range(seen, INT8, "percentile-100", False)
    assert float(scale) * 127 == pytest.approx(3, abs=1e-6)


def test_pooling_counts_every_number_once(seen: SiteStatistics) -> None:
    together = pooled([step(seen, k) for k in range(4)])
    again = _distribution(seen.rows.flatten())
    assert int(together.histogram.sum()) == seen.rows.numel() and together.limit == again.limit
    assert torch.equal(together.minimum, again.minimum) and torch.equal(together.maximum, again.maximum)
    assert int((together.histogram - again.histogram).abs().sum()) <= 2  # numbers on the edge of a bin


def test_ema_is_a_running_mean_over_steps(seen: SiteStatistics) -> None:
    mean = float(seen.absmax[0].amax())
    low, high = (float(t[0]) for t in (seen.minimum.amin(1), seen.maximum.amax(1)))
    for k in range(1, 4):
        low, high = 0.95 * low + 0.05 * float(seen.minimum[k].amin()), 0.95 * high + 0.05 * float(seen.maximum[k].amax())
    found = activation_range(seen, ActivationSpec(format="int8", range="ema"))
    assert float(found.scale) == pytest.approx(max(-low, high) / 127, rel=1e-6) and float(found.scale) < mean / 127
    table = [activation_range(seen, ActivationSpec(format="int8", mode="table", range=r)).scale for r in ("ema", "minmax")]
    assert torch.equal(*table)


def test_the_format_that_fits_is_chosen() -> None:
    evenly, heavy = torch.rand(4, 64, 32) * 2 - 1, torch.randn(4, 64, 32, generator=torch.Generator().manual_seed(3)) ** 9
    spec = ActivationSpec(format="e2m5|e3m4|e4m3|e5m2", range="float-search")
    assert activation_range(_seen(evenly), spec).format == "e2m5"
    assert activation_range(_seen(heavy), spec).format == "e3m4"


def test_per_token(seen: SiteStatistics) -> None:
    absmax = torch.maximum(seen.token_maximum, -seen.token_minimum)  # type: ignore[arg-type,operator]
    static = activation_range(seen, ActivationSpec(format="int8", granularity="token"))
    assert torch.allclose(static.scale, absmax.amax(0)[:, None] / 127)
    table = activation_range(seen, ActivationSpec(format="int8", granularity="token", mode="table"))
    assert torch.allclose(table.scale, absmax / 127)


def test_nvfp4_has_a_global_scale(seen: SiteStatistics) -> None:
    found = activation_range(seen, ActivationSpec(format="nvfp4", mode="dynamic"))
    assert found.format == "e2m1" and float(found.scale) == pytest.approx(float(seen.absmax.amax()) / (6 * 448))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(["minmax", "float-search", "percentile-99"]), st.booleans(), st.integers(-6, 6))
def test_scales_follow_the_numbers(seed: int, range: str, centred: bool, power: int) -> None:
    x = _numbers(500, seed) ** 3
    one = histogram_range(_distribution(x), INT4, range, centred)
    other = histogram_range(_distribution(x * 2.0**power), INT4, range, centred)
    assert torch.allclose(one[0] * 2.0**power, other[0], rtol=1e-5) and float(one[0]) > 0
    if one[1] is not None and other[1] is not None:
        assert torch.allclose(one[1] * 2.0**power, other[1], rtol=1e-4, atol=1e-5 * 2.0**power)


def test_a_constant_has_a_scale() -> None:
    flat = Distribution(
        torch.zeros(BINS, dtype=torch.int64).index_fill(0, torch.tensor([BINS // 2]), 9), torch.tensor(1.0), *torch.zeros(2)
    )
    for range in ("minmax", "mse", "percentile-99", "float-search"):
        for centred in (False, True):
            assert float(histogram_range(flat, INT8, range, centred)[0]) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "dynamic"}, "take their scales from themselves"),
        ({"granularity": "channel-groups-8"}, "groups.py"),
        ({"granularity": "token", "range": "mse"}, "extremes only"),
        ({"granularity": "token", "centred": True}, "extremes only"),
        ({"range": "median"}, "expected minmax, mse, percentile-P"),
    ],
)
def test_says_what_has_no_meaning(seen: SiteStatistics, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        activation_range(seen, ActivationSpec(format="int8", **change))


def test_tokens_must_be_known(seen: SiteStatistics) -> None:
    without = dataclasses.replace(seen, token_minimum=None, token_maximum=None)
    with pytest.raises(ValueError, match="needs mode dynamic"):
        activation_range(without, ActivationSpec(format="int8", granularity="token"))
