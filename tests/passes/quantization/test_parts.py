"""Weights that are quantized when they are read, and weights that are kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dexport.passes.quantization.gptq import gptq
from dexport.passes.quantization.parts import RealWeight, quantized_part, shared_scales
from dexport.passes.quantization.recipe import WeightSpec
from dexport.passes.quantization.scratch import Scratch
from dexport.passes.quantization.values import QuantizedPart
from dexport.passes.quantization.weights import quantize_weight
from dexport.plugins.quantized_linear.reference import dequantized

WEIGHT = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
KERNEL = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(1))
SPECS = {
    "channel": WeightSpec(format="int4"),
    "tensor": WeightSpec(format="int8", granularity="tensor", range="mse"),
    "block": WeightSpec(format="int4", granularity="block-16"),
    "float": WeightSpec(format="e2m1"),
    "e4m3": WeightSpec(format="e4m3", granularity="tensor"),
    "nvfp4": WeightSpec(format="nvfp4"),
    "mxfp4": WeightSpec(format="mxfp4"),
}


def _counted(tensor: torch.Tensor) -> tuple[Callable[[], torch.Tensor], list[int]]:
    """Something that reads a tensor, and how often it did."""
    reads = [0]

    def read() -> torch.Tensor:
        reads[0] += 1
        return tensor

    return read, reads


def _loaded(part: QuantizedPart) -> torch.Tensor:
    coarse = None if part.coarse is None else part.coarse.load()
    return dequantized(part.codes.load(), part.scale.load(), coarse, part.format)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_what_is_promised_without_reading_is_what_is_read(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    read, reads = _counted(WEIGHT)
    part = quantized_part(RealWeight(read, (8, 64), "w"), SPECS[name], None, Scratch(tmp_path), dtype)
    assert reads == [0] and not list(tmp_path.iterdir())
    for weight in (part.codes, part.scale, *([] if part.coarse is None else [part.coarse])):
        found = weight.load()
        assert tuple(found.shape) == weight.shape and found.dtype is weight.dtype, weight.origin
    expected = quantize_weight(WEIGHT, SPECS[name])
    assert part.format == expected.format and (part.coarse is None) == (expected.coarse is None)
    if dtype is torch.float32:
        assert torch.equal(part.codes.load().float(), expected.codes.float())
    assert float((_loaded(part) - WEIGHT).norm() / WEIGHT.norm()) < 0.2


def test_a_slow_reading_or_a_choice_is_done_once(tmp_path: Path) -> None:
    for weight, spec in (
        (RealWeight(lambda: WEIGHT, (8, 64), "slow", slow=True), WeightSpec(format="int4")),
        (RealWeight(lambda: WEIGHT, (8, 64), "choice"), WeightSpec(format="e2m1|e1m2", range="float-search", granularity="tensor")),
    ):
        read, reads = _counted(WEIGHT)
        part = quantized_part(RealWeight(read, weight.shape, weight.origin, weight.slow), spec, None, Scratch(tmp_path), torch.float32)
        assert reads == [1]
        assert torch.equal(_loaded(part), _loaded(part)) and reads == [1]
        assert part.format in spec.format.split("|") and part.label.startswith(part.format)


def test_other_rounding(tmp_path: Path) -> None:
    rows = torch.randn(100, 64, generator=torch.Generator().manual_seed(2)) @ torch.randn(
        64, 64, generator=torch.Generator().manual_seed(3)
    )
    weight, spec = RealWeight(lambda: WEIGHT, (8, 64), "w"), WeightSpec(format="int4")
    nearest = quantized_part(weight, spec, None, Scratch(tmp_path), torch.float32)
    better = quantized_part(weight, spec, None, Scratch(tmp_path), torch.float32, lambda w, grid: gptq(w, rows, grid))
    errors = [float((rows @ (_loaded(part) - WEIGHT).T).square().mean()) for part in (nearest, better)]
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize("channels", [tuple(range(16, 48)), (0, 5, 9, 63)])
def test_some_channels(channels: tuple[int, ...], tmp_path: Path) -> None:
    weight = RealWeight(lambda: WEIGHT, (8, 64), "w")
    part = quantized_part(weight, WeightSpec(format="int8"), None, Scratch(tmp_path), torch.float32, channels=channels)
    assert part.channels == channels and part.codes.shape == (8, len(channels)) == tuple(part.codes.load().shape)
    picked = WEIGHT[:, channels]
    assert float((_loaded(part) - picked).abs().max()) <= float(picked.abs().max()) / 127
    other = quantized_part(weight, WeightSpec(format="int8"), None, Scratch(tmp_path), torch.float32, channels=(1, *channels[1:]))
    assert other.codes.origin != part.codes.origin


def test_parts_that_share_the_scales_of_the_weight(tmp_path: Path) -> None:
    """Together they are the weight quantized as a whole; so are their bits, and their scales are stored once."""
    weight, spec, scratch = RealWeight(lambda: WEIGHT, (8, 64), "w"), WeightSpec(format="int4", range="mse"), Scratch(tmp_path)
    whole = quantized_part(weight, spec, None, scratch, torch.float32)
    shared = shared_scales(weight, spec, torch.float32)
    groups = (tuple(range(0, 64, 2)), tuple(range(1, 64, 2)))
    parts = [quantized_part(weight, spec, None, scratch, torch.float32, channels=group, shared=shared) for group in groups]
    for part, group in zip(parts, groups):
        assert torch.equal(_loaded(part), _loaded(whole)[:, group]) and part.bits == whole.bits
        assert part.scale.origin == whole.scale.origin and torch.equal(part.scale.load(), whole.scale.load())
    assert shared_scales(weight, WeightSpec(format="int4", granularity="block-16"), torch.float32) is None


def test_kernels(tmp_path: Path) -> None:
    part = quantized_part(RealWeight(lambda: KERNEL, (8, 4, 3, 3), "k"), WeightSpec(format="int8"), None, Scratch(tmp_path), torch.float32)
    assert part.codes.shape == (8, 4, 3, 3) and part.scale.shape == (8, 1, 1, 1) == tuple(part.scale.load().shape)
    assert float((part.codes.load() * part.scale.load() - KERNEL).abs().max()) < 0.02


def test_scales_are_rounded_before_codes_are_chosen(tmp_path: Path) -> None:
    """In fp16, and never to zero: codes fit the scale that the graph holds."""
    weight = RealWeight(lambda: WEIGHT * 1e-9, (8, 64), "w")
    part = quantized_part(weight, WeightSpec(format="int4"), None, Scratch(tmp_path), torch.float16)
    scale = part.scale.load()
    assert scale.dtype is torch.float16 and bool((scale > 0).all()) and not part.codes.load().any()
    part = quantized_part(RealWeight(lambda: WEIGHT, (8, 64), "w"), WeightSpec(format="int4"), None, Scratch(tmp_path), torch.float16)
    nearest = (WEIGHT / part.scale.load().float()).round().clamp(-8, 7)
    assert torch.equal(part.codes.load().float(), nearest)


@pytest.mark.parametrize(
    ("name", "label", "bits"),
    [
        ("channel", "int4", 4 + 32 / 64),
        ("tensor", "int8 tensor", 8 + 32 / 512),
        ("block", "int4 block-16", 5),
        ("nvfp4", "nvfp4", 4 + 8 / 16 + 32 / 512),
        ("mxfp4", "mxfp4", 4 + 8 / 32),
    ],
)
def test_labels_and_bits(name: str, label: str, bits: float, tmp_path: Path) -> None:
    part = quantized_part(RealWeight(lambda: WEIGHT, (8, 64), "w"), SPECS[name], None, Scratch(tmp_path), torch.float32)
    assert (part.label, part.bits) == (label, pytest.approx(bits))


def test_origins_tell_weights_apart(tmp_path: Path) -> None:
    """Equal origins mean equal weights, so what was done must be part of them."""
    weights = [RealWeight(lambda: WEIGHT, (8, 64), origin) for origin in ("a", "b")]
    parts = [quantized_part(w, spec, None, Scratch(tmp_path), torch.float32) for w in weights for spec in SPECS.values()]
    origins = [weight.origin for part in parts for weight in (part.codes, part.scale)]
    assert len(set(origins)) == len(origins)
