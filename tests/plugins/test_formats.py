"""Number formats: their grids against enumeration, rounding against brute force, gradients against the formulas."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dexport.plugins.formats import FORMATS, Format, fake_quantize, format_of

FLOATS = [name for name in FORMATS if name.startswith("e")]
INTEGERS = [name for name in FORMATS if name.startswith("int")]


def numbers(name: str) -> list[float]:
    """Every number of a format, ascending, in the order of its magnitude bits and independently of the code."""
    number = format_of(name)
    if name.startswith("int"):
        bits = int(name[3:])
        return [float(v) for v in range(-(2 ** (bits - 1)), 2 ** (bits - 1))]
    exponent, mantissa = int(name[1]), int(name[3])
    bias = 2 ** (exponent - 1) - 1
    found = {0.0}
    for field in range(2**exponent):
        for fraction in range(2**mantissa):
            power = field - bias if field else 1 - bias
            found.add(((1 if field else 0) * 2**mantissa + fraction) * 2.0 ** (power - mantissa))
    positive = sorted(v for v in found if v <= number.largest)
    return [-v for v in reversed(positive) if v] + positive


def nearest(x: float, grid: list[float], name: str) -> float:
    """The nearest number; of two the one with an even code, or the larger one if a mantissa has no bits that could be even."""
    distance = min(abs(x - v) for v in grid)
    candidates = [v for v in grid if abs(x - v) == distance]
    if len(candidates) == 1:
        return candidates[0]
    if name.endswith("m0") and 0 not in candidates:
        return max(candidates, key=abs)
    return next(v for v in candidates if (grid.index(v) - grid.index(0)) % 2 == 0)


@pytest.mark.parametrize("name", FORMATS)
def test_rounds_to_the_nearest_ties_to_even(name: str) -> None:
    number, grid = format_of(name), numbers(name)
    middles = [(a + b) / 2 for a, b in itertools.pairwise(grid)]
    around = [m * factor for m in middles for factor in (1 - 2**-20, 1 + 2**-20)]
    beyond = [grid[0] * 1.5 - 1, grid[-1] * 1.5 + 1, float("inf"), float("-inf")]
    points = grid + middles + around
    found = number.round(torch.tensor(points, dtype=torch.float64)).tolist()
    assert found == [nearest(x, grid, name) for x in points]
    assert number.round(torch.tensor(beyond)).tolist() == [grid[0], grid[-1], grid[-1], grid[0]]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rounding_is_exact_in_every_dtype(name: str, dtype: torch.dtype) -> None:
    """A grid point stays, and what is rounded is what float64 would round."""
    number = format_of(name)
    x = (torch.randn(2000, generator=torch.Generator().manual_seed(0)) * number.largest / 3).to(dtype)
    rounded = number.round(x)
    assert rounded.dtype is dtype and torch.equal(rounded.double(), number.round(x.double()))
    assert torch.equal(number.round(rounded), rounded)


@pytest.mark.parametrize("name", ["e4m3", "e5m2"])
def test_eight_bit_floats_are_those_of_pytorch(name: str) -> None:
    number = format_of(name)
    dtype = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}[name]
    assert number.code_dtype is dtype and number.largest == torch.finfo(dtype).max
    codes = torch.arange(256, dtype=torch.uint8).view(dtype).float()
    real = codes[codes.isfinite()]
    x = torch.cat([real, real * 1.03, torch.randn(4000, generator=torch.Generator().manual_seed(0))]).clamp(-number.largest, number.largest)
    assert torch.equal(number.round(x), x.to(dtype).float())
    assert torch.equal(number.encode(number.round(x)).float(), number.round(x))


@pytest.mark.parametrize("name", FORMATS)
def test_codes_return(name: str) -> None:
    number, grid = format_of(name), torch.tensor(numbers(name))
    codes = number.encode(grid)
    assert codes.dtype is number.code_dtype
    assert torch.equal(number.decode(codes, torch.float32), grid)
    if codes.dtype is not torch.int8:
        assert len(set(codes.view(torch.uint8).tolist())) == len(grid)
    if codes.dtype is torch.uint8:
        assert int(codes.max()) < 2**number.bits
        assert torch.equal(number.grid()[codes.long()], grid)


@pytest.mark.parametrize("name", FORMATS)
def test_what_a_format_says_of_itself(name: str) -> None:
    number, grid = format_of(name), numbers(name)
    assert (number.lowest, number.largest) == (grid[0], grid[-1])
    assert number.bits == (int(name[3:]) if name in INTEGERS else 1 + int(name[1]) + int(name[3]))
    assert number.is_integer == (name in INTEGERS)


def test_published_identities() -> None:
    """e2m1 is FP4; e1m2 an evenly spaced grid of 15 levels; e3m0 zero and powers of two."""
    assert numbers("e2m1")[7:] == [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert format_of("e2m1").grid().tolist() == [0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6]
    even = format_of("e1m2").grid()[:8]
    assert torch.equal(even / even[1], torch.arange(8.0))
    assert format_of("e3m0").grid()[1:8].log2().tolist() == list(range(-2, 5))


@pytest.mark.parametrize("name", ["int9", "int1", "e4m4", "e0m3", "e6m1", "fp8", "", "INT8", "e2m1 "])
def test_unknown_names(name: str) -> None:
    with pytest.raises(ValueError, match=r"no number format; known are int8, .*e3m0"):
        format_of(name)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(FORMATS), st.floats(1e-3, 1e3), st.integers(0, 1000))
def test_the_error_is_at_most_half_a_step(name: str, scale: float, seed: int) -> None:
    number = format_of(name)
    x = torch.randn(64, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale * number.largest / 2
    x = x.clamp(scale * number.lowest, scale * number.largest)
    grid = torch.tensor(numbers(name), dtype=torch.float64) * scale
    below = torch.searchsorted(grid, x).clamp(1, len(grid) - 1)
    step = grid[below] - grid[below - 1]
    error = (fake_quantize(x, torch.tensor(scale, dtype=torch.float64), number) - x).abs()
    assert bool((error <= step / 2 * (1 + 1e-9)).all())


@pytest.mark.parametrize("name", ["int4", "int8", "e2m1", "e3m0", "e4m3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients(name: str, dtype: torch.dtype) -> None:
    """Straight through inside, nothing outside; of the scale: round(v) - v inside, the end of the grid outside (LSQ, equation 3)."""
    number = format_of(name)
    x = torch.randn(200, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    scale = torch.tensor(1.5 / number.largest).to(dtype).requires_grad_()
    result = fake_quantize(x, scale, number)
    with torch.no_grad():
        assert torch.equal(result, fake_quantize(x, scale, number))  # the same numbers with and without gradients
    weight = torch.randn(200, generator=torch.Generator().manual_seed(1)).to(dtype)
    result.backward(weight)
    v = (x / scale).detach()
    outside = (v > number.largest) | (v < number.lowest)
    assert 0 < int(outside.sum()) < 200
    assert x.grad is not None and torch.allclose(x.grad, torch.where(outside, 0, weight), rtol=4 * torch.finfo(dtype).eps)
    expected = torch.where(outside, v.clamp(number.lowest, number.largest), number.round(v) - v).double() @ weight.double()
    largest = float(number.largest * weight.double().abs().sum())
    assert scale.grad is not None and abs(float(scale.grad) - float(expected)) <= torch.finfo(dtype).eps * largest


def test_the_input_stays_as_it_is() -> None:
    x = torch.tensor([0.3, 200.0, -1.7])
    kept = x.clone()
    assert isinstance(format_of("int8"), Format)
    format_of("int8").round(x), fake_quantize(x, torch.tensor(1.0), format_of("int8"))
    assert torch.equal(x, kept)
