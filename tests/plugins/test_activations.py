"""Rounding of activations against loops over rows and blocks."""

from __future__ import annotations

import math

import pytest
import torch

from dexport.plugins.activations import dynamic_scale, micro_scale, quantize_micro_blocks, quantize_rows, row_range
from dexport.plugins.formats import format_of

FP4 = format_of("e2m1")


def _random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def _rounded(values: list[float], scale: float, name: str) -> list[float]:
    """scale * nearest grid number, in double precision."""
    x = torch.tensor(values, dtype=torch.float64)
    return (format_of(name).round(x / scale) * scale).tolist()


@pytest.mark.parametrize("name", ["int8", "int4", "e4m3", "e3m2"])
@pytest.mark.parametrize("block", [0, 8, 16])
def test_a_scale_per_row_or_block(name: str, block: int) -> None:
    x = _random(2, 3, 32)
    found = quantize_rows(x, format_of(name), block)
    for row, result in zip(x.reshape(-1, block or 32).tolist(), found.reshape(-1, block or 32).tolist(), strict=True):
        scale = max(abs(v) for v in row) / format_of(name).largest
        expected = _rounded(row, scale, name)
        # Where float32 and double precision disagree on which side of a tie a number lies, they are a step apart; here none does.
        assert result == pytest.approx(expected, rel=1e-6, abs=1e-7)


def test_row_range() -> None:
    low, high = row_range(torch.tensor([[1.0, -2.0, 3.0], [4.0, 5.0, 6.0]]))
    assert low.tolist() == [[-2], [4]] and high.tolist() == [[3], [6]]


def test_nvfp4_blocks() -> None:
    """Two levels: absmax / 6 / coarse rounded to e4m3."""
    x, coarse = _random(3, 64), torch.tensor(0.002)
    found = quantize_micro_blocks(x, FP4, 16, coarse)
    for block, result in zip(x.reshape(-1, 16).tolist(), found.reshape(-1, 16).tolist(), strict=True):
        fine = float(torch.tensor(max(abs(v) for v in block) / 6 / float(coarse)).to(torch.float8_e4m3fn).float())
        assert result == pytest.approx(_rounded(block, fine * float(coarse), "e2m1"), rel=1e-6)


def test_mxfp4_blocks() -> None:
    """A power of two so that the largest magnitude lies in the topmost binade of e2m1, [4, 8)."""
    x = _random(3, 64) * 10
    scales = micro_scale(x.unflatten(-1, (-1, 32)), FP4, None)
    found = quantize_micro_blocks(x, FP4, 32, None)
    for block, scale, result in zip(x.reshape(-1, 32).tolist(), scales.flatten().tolist(), found.reshape(-1, 32).tolist(), strict=True):
        assert scale == 2.0 ** (math.floor(math.log2(max(abs(v) for v in block))) - 2)
        assert result == pytest.approx(_rounded(block, scale, "e2m1"), rel=1e-7)


def test_the_second_level_saturates() -> None:
    """Block scales end at 448 and 2^-9 of the coarse one."""
    blocks = torch.tensor([[[1e6, 0.0], [1e-6, 0.0]]])
    assert micro_scale(blocks, FP4, torch.tensor(1.0)).flatten().tolist() == [448, 2.0**-9]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [0.0, 1e-7, 1e-3])
def test_small_and_zero_rows(dtype: torch.dtype, size: float) -> None:
    """No division by zero: zeros stay zeros and small numbers stay about what they are, also where fp16 has none left for a scale."""
    x = (torch.ones(2, 32) * size).to(dtype)
    x[1] = 0
    results = [
        quantize_rows(x, format_of("int8"), 0),
        quantize_rows(x, format_of("e4m3"), 16),
        quantize_micro_blocks(x, FP4, 16, torch.tensor(max(size, 1e-7) / (6 * 448))),
        quantize_micro_blocks(x, FP4, 32, None),
    ]
    for result in results:
        assert result.dtype is dtype and bool(result.isfinite().all()) and not result[1].any()
        assert float((result[0] - x[0]).abs().max()) <= 0.5 * size


def test_gradients_reach_the_input() -> None:
    x = _random(2, 32).requires_grad_()
    quantize_rows(x, format_of("int8"), 16).sum().backward()
    assert x.grad is not None and bool(x.grad.isfinite().all()) and float((x.grad - 1).abs().mean()) < 0.2
    x.grad = None
    quantize_micro_blocks(x, FP4, 16, torch.tensor(0.002)).sum().backward()
    blocks = x.detach().unflatten(-1, (-1, 16))
    scale = micro_scale(blocks, FP4, torch.tensor(0.002))
    assert torch.equal(x.grad != 0, (blocks.abs() / scale <= FP4.largest).flatten(-2))


def test_scales_are_those_of_the_rows() -> None:
    x = torch.tensor([[1.0, -127.0], [0.5, 0.25]])
    assert dynamic_scale(x, format_of("int8")).tolist() == [[1.0], [pytest.approx(0.5 / 127)]]
