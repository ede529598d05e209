"""Quantized weights: codes and scales of a weight, and back.

The scale of a weight is held in

    tensor, channel    float32: a few numbers per layer
    block-N            float16, as SVDQuant's kernels hold it; codes are chosen for the rounded scale
    nvfp4              float8 e4m3 per 16 inputs, times one float32 = absmax / (6 * 448)
    mxfp4              float8 e8m0 (a power of two) per 32 inputs; OCP Microscaling Formats 1.0, section 6.3

Notation: O outputs, I inputs, N inputs in a block.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from dexport.passes.quantization.ranges import float_search, positive
from dexport.passes.quantization.recipe import MICRO_FORMATS, WeightSpec
from dexport.plugins.activations import micro_scale
from dexport.plugins.formats import Format, format_of
from dexport.plugins.quantized_linear.reference import dequantized

_E4M3_LARGEST = 448.0
_KEPT_BITS = 16
"""Bits of a weight that is not quantized, and of the factors of a low-rank branch."""
_PIECE = 2**18
"""Numbers that are encoded at once: they stay in the processor's cache."""


@dataclass(frozen=True)
class WeightGrid:
    """The numbers that a weight may be rounded to: scale * coarse * (a number of the format).

    Attributes:
        format: name in plugins/formats.py; of the two-level formats that of the codes.
        scale: [1, 1, ...], [O, 1, ...] or [O, I/N]; float32, float16, float8 (see the module).
        coarse: second level of NVFP4 scales, float32 [], else None.
    """

    format: str
    scale: torch.Tensor
    coarse: torch.Tensor | None = None

    @property
    def number(self) -> Format:
        """The format itself."""
        return format_of(self.format)

    def steps(self, inputs: int) -> torch.Tensor:
        """Scale of every element, float32, broadcastable to the weight; [O, I] where there are blocks."""
        scale = self.scale.float() if self.coarse is None else self.scale.float() * self.coarse
        blocks = scale.shape[1]
        return scale.repeat_interleave(inputs // blocks, 1) if blocks > 1 else scale

    def round(self, weight: torch.Tensor) -> torch.Tensor:
        """The nearest numbers of the grid, float32."""
        steps = self.steps(weight.shape[1])
        return self.number.round(weight.float() / steps) * steps


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight as the quantized operations read it.

    Attributes:
        codes: [O, I, ...], of the format's `code_dtype`.
        scale, coarse, format: as of WeightGrid.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    coarse: torch.Tensor | None
    format: str


class WeightSize(NamedTuple):
    """What the bits of a layer depend on; `spec` None means kept in 16 bits, `shared` layers use one down-projection of the branch."""

    shape: tuple[int, ...]
    spec: WeightSpec | None
    rank: int = 0
    shared: int = 1


def fits(shape: tuple[int, ...], spec: WeightSpec) -> str | None:
    """Why a weight of this shape cannot be quantized so; None if it can."""
    if spec.block and len(shape) > 2:
        return f"blocks of {spec.block} inputs are for linears; the weight has the kernel {'x'.join(map(str, shape[2:]))}"
    if spec.block and shape[1] % spec.block:
        return f"{shape[1]} inputs are no multiple of the block of {spec.block}"
    if spec.format in MICRO_FORMATS and spec.range != "minmax":
        return f"the scales of {spec.format} follow from the largest magnitudes; range must be minmax, not {spec.range}"
    if "|" in spec.format and any(name in MICRO_FORMATS for name in spec.format.split("|")):
        return f"a choice of formats cannot include {' or '.join(MICRO_FORMATS)}, which have scales of their own"
    return None


def weight_grid(weight: torch.Tensor, spec: WeightSpec) -> WeightGrid:
    """The grid for a weight [O, I, ...]: its scales, and the format where the spec leaves a choice.

    Raises:
        ValueError: see `fits`.
    """
    if (reason := fits(tuple(weight.shape), spec)) is not None:
        raise ValueError(reason)
    if spec.format in MICRO_FORMATS:
        return _micro_grid(weight.float(), spec)
    formats = [format_of(name) for name in spec.format.split("|")]
    number, scale = float_search(weight, formats, spec.granularity, spec.range)
    if not spec.block:
        return WeightGrid(number.name, scale)
    half = torch.finfo(torch.float16)
    return WeightGrid(number.name, scale.clamp(half.smallest_normal * half.eps, half.max).half())


def quantize_weight(weight: torch.Tensor, spec: WeightSpec) -> QuantizedWeight:
    """The nearest codes (other roundings start from `weight_grid`: gptq.py, adaround.py).

    Raises:
        ValueError: see `fits`.
    """
    return encode(weight, weight_grid(weight, spec))


def encode(weight: torch.Tensor, grid: WeightGrid) -> QuantizedWeight:
    """The codes of the numbers of the grid that are nearest to a weight [O, I, ...]."""
    number = grid.number
    outputs = max(1, _PIECE // max(1, weight[0].numel()))
    steps = grid.steps(weight.shape[1]).expand(weight.shape[0], *[-1] * (weight.dim() - 1))
    codes = [number.encode(number.round(w.float() / s)) for w, s in zip(torch.split(weight, outputs), torch.split(steps, outputs))]
    return QuantizedWeight(torch.cat(codes), grid.scale, grid.coarse, grid.format)


def dequantize(weight: QuantizedWeight, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The real weight [O, I, ...]."""
    return dequantized(weight.codes, weight.scale, weight.coarse, weight.format, dtype)


def weight_bits(size: WeightSize) -> float:
    """Bits that a layer's weight takes: codes, scales, and the low-rank branch in 16 bits. Of a choice of formats the widest counts."""
    outputs, inputs = size.shape[:2]
    parameters = _elements(size.shape)
    branch = _KEPT_BITS * size.rank * (outputs + inputs / size.shared)
    if size.spec is None:
        return _KEPT_BITS * parameters + branch
    bits = max(format_of(MICRO_FORMATS.get(name, (name, 0))[0]).bits for name in size.spec.format.split("|"))
    return bits * parameters + _scale_bits(size.spec, outputs, inputs) + branch


def average_bits(sizes: Iterable[WeightSize]) -> float:
    """Bits per weight over several layers; 0 for none."""
    listed = list(sizes)
    parameters = sum(_elements(size.shape) for size in listed)
    return sum(weight_bits(size) for size in listed) / parameters if parameters else 0.0


def _scale_bits(spec: WeightSpec, outputs: int, inputs: int) -> int:
    if spec.format in MICRO_FORMATS:
        return 8 * outputs * (inputs // spec.block) + (32 if spec.format == "nvfp4" else 0)
    if spec.block:
        return 16 * outputs * (inputs // spec.block)
    return 32 * (1 if spec.granularity == "tensor" else outputs)


def _elements(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def _micro_grid(weight: torch.Tensor, spec: WeightSpec) -> WeightGrid:
    """The same rounding of scales as activations have (plugins/activations.py)."""
    name, block = MICRO_FORMATS[spec.format]
    number = format_of(name)
    blocks = torch.unflatten(weight, 1, (-1, block))
    if spec.format == "mxfp4":
        return WeightGrid(name, micro_scale(blocks, number, None)[..., 0].to(torch.float8_e8m0fnu))
    coarse = positive(weight.abs().amax() / (number.largest * _E4M3_LARGEST))
    # The product is divided again: the quotient is within a rounding of the e4m3 number that it came from.
    return WeightGrid(name, (micro_scale(blocks, number, coarse)[..., 0] / coarse).to(torch.float8_e4m3fn), coarse)
