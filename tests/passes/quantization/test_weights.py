"""Quantized weights: rounding, scales of every kind, and the bits they take."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dexport.passes.quantization.recipe import WeightSpec
from dexport.passes.quantization.weights import (
    WeightSize,
    average_bits,
    dequantize,
    fits,
    quantize_weight,
    weight_bits,
    weight_grid,
)
from dexport.plugins.activations import quantize_micro_blocks
from dexport.plugins.formats import FORMATS, format_of


def _weight(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from(["int8", "int6", "int4", "int3", "int2", "e1m2"]),
    st.sampled_from(["tensor", "channel", "block-8"]),
)
def test_even_grids_are_within_half_a_scale(seed: int, name: str, granularity: str) -> None:
    weight = _weight(5, 16, seed=seed)
    spec = WeightSpec(format=name, granularity=granularity)
    step = weight_grid(weight, spec).steps(16) * (1 if name.startswith("int") else 0.5)  # e1m2 counts in halves
    # fp16 scales of blocks may be rounded down: the largest number then saturates by at most 2^-11 of itself
    assert ((dequantize(quantize_weight(weight, spec)) - weight).abs() <= step * (0.5 + 1e-4) + weight.abs() * 2.0**-11).all()


@pytest.mark.parametrize("name", [*FORMATS, "nvfp4", "mxfp4"])
@pytest.mark.parametrize("shape", [(6, 64), (6, 64, 3, 3)])
def test_codes_survive_and_twice_is_once(name: str, shape: tuple[int, ...]) -> None:
    if len(shape) == 4 and name in ("nvfp4", "mxfp4"):
        assert fits(shape, WeightSpec(format=name)) is not None
        return
    once = quantize_weight(_weight(*shape), WeightSpec(format=name))
    real = dequantize(once)
    twice = weight_grid(real, WeightSpec(format=name)).round(real)
    assert once.codes.shape == shape and once.codes.dtype == format_of(once.format).code_dtype
    assert torch.allclose(twice, real, rtol=1e-5)
    assert real.sub(_weight(*shape)).square().mean() < 0.8  # of a variance of 1, even with the two bits of int2


def test_e1m2_is_int4_without_its_lowest_number() -> None:
    weight = _weight(8, 32)
    a, b = (dequantize(quantize_weight(weight, WeightSpec(format=name))) for name in ("e1m2", "int4"))
    assert torch.allclose(a, b, atol=1e-6)


def test_e3m0_is_powers_of_two() -> None:
    found = quantize_weight(_weight(1, 512), WeightSpec(format="e3m0", granularity="tensor"))
    grid = (dequantize(found) / found.scale).unique()
    grid = grid[grid > 0]
    assert torch.equal(torch.log2(grid), torch.log2(grid).round()) and len(grid) == 7


@pytest.mark.parametrize("name", ["nvfp4", "mxfp4"])
def test_two_levels_round_weights_as_activations(name: str) -> None:
    weight = _weight(8, 64)
    found = quantize_weight(weight, WeightSpec(format=name))
    block = {"nvfp4": 16, "mxfp4": 32}[name]
    assert torch.equal(dequantize(found), quantize_micro_blocks(weight, format_of("e2m1"), block, found.coarse))
    assert found.scale.shape == (8, 64 // block) and found.scale.element_size() == 1


def test_two_levels_know_their_scales() -> None:
    weight = _weight(4, 32)
    nvfp4 = quantize_weight(weight, WeightSpec(format="nvfp4"))
    assert nvfp4.coarse is not None and float(nvfp4.coarse) == pytest.approx(float(weight.abs().amax()) / (6 * 448))
    assert nvfp4.scale.dtype == torch.float8_e4m3fn and float(nvfp4.scale.float().amax()) == 448
    scale = quantize_weight(weight, WeightSpec(format="mxfp4")).scale
    assert scale.dtype == torch.float8_e8m0fnu and torch.equal(torch.log2(scale.float()), torch.log2(scale.float()).round())


@pytest.mark.parametrize("name", ["int4", "nvfp4", "mxfp4", "e2m1"])
@pytest.mark.parametrize("granularity", ["channel", "block-32"])
def test_zeros_and_tiny_numbers_stay_finite(name: str, granularity: str) -> None:
    weight = torch.zeros(3, 32)
    weight[2] = 1e-12
    real = dequantize(quantize_weight(weight, WeightSpec(format=name, granularity=granularity)))
    assert torch.isfinite(real).all() and real.abs().amax() <= 2e-12


def test_the_format_that_fits_is_chosen() -> None:
    spec = WeightSpec(format="e2m1|e1m2", granularity="tensor", range="float-search")
    assert quantize_weight(torch.linspace(-1, 1, 15)[None], spec).format == "e1m2"
    assert quantize_weight(torch.tensor([[6.0, 4, 3, 2, 1.5, 1, 0.5, -6]]), spec).format == "e2m1"


def test_codes_are_chosen_for_the_scale_that_is_stored() -> None:
    weight = _weight(16, 64)
    found = quantize_weight(weight, WeightSpec(format="int8", granularity="block-16"))
    assert found.scale.dtype == torch.float16
    exact = (weight.unflatten(1, (4, 16)) / found.scale.float()[..., None]).flatten(1)
    assert torch.equal(found.codes, exact.round().clamp(-128, 127).to(torch.int8))


@pytest.mark.parametrize(
    ("shape", "spec", "reason"),
    [
        ((4, 100), WeightSpec(format="int4", granularity="block-64"), "100 inputs are no multiple of the block of 64"),
        ((4, 100), WeightSpec(format="nvfp4"), "block of 16"),
        ((4, 64, 3, 3), WeightSpec(format="int4", granularity="block-64"), "for linears; the weight has the kernel 3x3"),
        ((4, 64), WeightSpec(format="mxfp4", range="mse"), "range must be minmax"),
        ((4, 64), WeightSpec(format="int4|nvfp4"), "scales of their own"),
    ],
)
def test_says_what_does_not_fit(shape: tuple[int, ...], spec: WeightSpec, reason: str) -> None:
    assert reason in str(fits(shape, spec))
    with pytest.raises(ValueError, match=reason):
        quantize_weight(torch.zeros(shape), spec)


def test_bits_count_codes_scales_and_branch() -> None:
    shape = (128, 256)
    assert weight_bits(WeightSize(shape, WeightSpec(format="int4", granularity="block-64"))) == 128 * 256 * 4 + 128 * 4 * 16
    assert weight_bits(WeightSize(shape, WeightSpec(format="int8"))) == 128 * 256 * 8 + 128 * 32
    assert weight_bits(WeightSize(shape, WeightSpec(format="nvfp4"))) == 128 * 256 * 4.5 + 32
    assert weight_bits(WeightSize(shape, WeightSpec(format="mxfp4"))) == 128 * 256 * 4.25
    assert weight_bits(WeightSize(shape, None, rank=8)) == 128 * 256 * 16 + 16 * 8 * (128 + 256)
    assert weight_bits(WeightSize(shape, None, 8, shared=2)) == 128 * 256 * 16 + 16 * 8 * (128 + 128)
    four, kept = WeightSize((64, 64), WeightSpec(format="e2m1", granularity="tensor")), WeightSize((64, 192), None)
    assert average_bits([four, kept]) == pytest.approx((4 + 32 / 64**2 + 3 * 16) / 4)
    assert average_bits([]) == 0


@pytest.mark.parametrize("spec", [WeightSpec(format="int8"), WeightSpec(format="int8", granularity="block-32"), WeightSpec(format="nvfp4")])
def test_bits_are_those_of_the_tensors(spec: WeightSpec) -> None:
    found = quantize_weight(_weight(16, 64), spec)
    tensors = [found.codes, found.scale, *([] if found.coarse is None else [found.coarse])]
    stored = sum(t.numel() * t.element_size() * 8 for t in tensors)
    if found.format == "e2m1":
        stored -= found.codes.numel() * 4  # two codes share a byte on disk
    assert weight_bits(WeightSize((16, 64), spec)) == stored
