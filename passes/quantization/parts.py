"""The weight of a site as codes and scales: quantized when it is read, or at once where that takes long.

Notation: O outputs, I inputs, N inputs in a block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from dexport.passes.graph import Weight
from dexport.passes.quantization.recipe import MICRO_FORMATS, WeightSpec
from dexport.passes.quantization.scratch import Scratch
from dexport.passes.quantization.values import ActivationValues, QuantizedPart
from dexport.passes.quantization.weights import QuantizedWeight, WeightGrid, WeightSize, encode, weight_bits, weight_grid
from dexport.plugins.formats import format_of

Rounding = Callable[[torch.Tensor, WeightGrid], QuantizedWeight]


@dataclass(frozen=True)
class RealWeight:
    """A weight before it is quantized.

    Attributes:
        read: reads it, with everything done to it that stands before rounding; float32 [O, I, ...].
        origin: where it comes from and what was done, for messages and to find equal weights.
        slow: `read` is no mere reading: what it gives is kept.
    """

    read: Callable[[], torch.Tensor]
    shape: tuple[int, ...]
    origin: str
    slow: bool = False


class SharedScales:
    """Scales of a whole weight that its codes and its parts share: found when they are needed first, and kept, as they are few."""

    def __init__(self, weight: RealWeight, spec: WeightSpec, dtype: torch.dtype) -> None:
        self.weight, self._spec, self._dtype = weight, spec, dtype
        self._found: WeightGrid | None = None

    def grid(self, real: torch.Tensor | None = None) -> WeightGrid:
        """The scales; `real` is the weight, where it has been read already."""
        if self._found is None:
            self._found = _grid(self.weight.read() if real is None else real, self._spec, self._dtype)
        return self._found


def quantized_part(
    weight: RealWeight,
    spec: WeightSpec,
    activations: ActivationValues | None,
    scratch: Scratch,
    dtype: torch.dtype,
    rounding: Rounding | None = None,
    channels: tuple[int, ...] | None = None,
    shared: SharedScales | None = None,
) -> QuantizedPart:
    """The operation of a site, or of some of its channels.

    Args:
        dtype: of the graph's activations: scales of tensors and channels are rounded to it before codes are chosen.
        rounding: other than to the nearest.
        channels: which inputs of the weight belong to this part.
        shared: the scales of the whole weight, instead of own ones.
    """
    if channels is not None:
        weight = _picked(weight, channels)
    scales = shared or shared_scales(weight, spec, dtype)
    scaled = weight if scales is None else scales.weight

    def grid(real: torch.Tensor | None = None) -> WeightGrid:
        if scales is not None:
            return scales.grid(real if scaled is weight else None)
        return _grid(weight.read() if real is None else real, spec, dtype)

    def quantized() -> QuantizedWeight:
        real = weight.read()
        found = (encode if rounding is None else rounding)(real, grid(real))
        return replace(found, scale=found.scale.to(dtype)) if found.scale.dtype is torch.float32 else found

    known = "|" not in spec.format and rounding is None and not weight.slow
    weights = _lazy(weight, scaled, spec, dtype, grid, quantized) if known else _kept(weight, spec, scratch, quantized())
    codes, scale, coarse, name = weights
    bits = weight_bits(WeightSize(scaled.shape, spec)) / _elements(scaled.shape)
    return QuantizedPart(codes, scale, coarse, name, _label(name, spec), bits, activations, channels)


def shared_scales(weight: RealWeight, spec: WeightSpec, dtype: torch.dtype) -> SharedScales | None:
    """The scales of a weight for its parts to share; None where they stand in blocks, which parts do not keep together."""
    return None if spec.block else SharedScales(weight, spec, dtype)


def _grid(real: torch.Tensor, spec: WeightSpec, dtype: torch.dtype) -> WeightGrid:
    grid = weight_grid(real, spec)
    return replace(grid, scale=_held(grid.scale, dtype)) if grid.scale.dtype is torch.float32 else grid


def _held(scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A float32 scale as the graph will hold it."""
    tiny = torch.finfo(dtype).smallest_normal
    return scale.clamp(min=tiny).to(dtype).float()


def given_part(
    weight: RealWeight, grid: WeightGrid, spec: WeightSpec, activations: ActivationValues | None, dtype: torch.dtype
) -> QuantizedPart:
    """The operation of a site whose scales are known: only codes have to be found, and are when they are read.

    Args:
        grid: with float32 scales; they are held in the dtype of the graph, those of blocks at least in float16.
        spec: the same in words.
        dtype: of the graph's activations.
    """
    dtype = torch.float16 if spec.block and dtype is torch.bfloat16 else dtype
    grid = replace(grid, scale=_held(grid.scale, dtype))
    scale = grid.scale.to(dtype)
    codes = Weight(weight.shape, grid.number.code_dtype, lambda: encode(weight.read(), grid).codes, f"{weight.origin} as {spec}: codes")
    scales = Weight(tuple(scale.shape), dtype, lambda: scale, f"{weight.origin} as {spec}: scales in {dtype}")
    bits = grid.number.bits + 8 * scales.nbytes / _elements(weight.shape)
    return QuantizedPart(codes, scales, None, grid.format, _label(grid.format, spec), bits, activations)


def _picked(weight: RealWeight, channels: tuple[int, ...]) -> RealWeight:
    index = torch.tensor(channels)
    shape = (weight.shape[0], len(channels), *weight.shape[2:])
    read = weight.read
    origin = f"{weight.origin}[{channels[0]}..{channels[-1]}, {len(channels)}, {hash(channels) & 0xFFFFFFFF:x}]"
    return replace(weight, shape=shape, read=lambda: read().index_select(1, index), origin=origin)


def _lazy(
    weight: RealWeight,
    scaled: RealWeight,
    spec: WeightSpec,
    dtype: torch.dtype,
    grid: Callable[[], WeightGrid],
    quantized: Callable[[], QuantizedWeight],
) -> tuple[Weight, Weight, Weight | None, str]:
    """Weights that quantize when they are read; what they will be is known without reading. Scales are those of the weight `scaled`."""
    outputs, inputs, *kernel = weight.shape
    number = MICRO_FORMATS.get(spec.format, (spec.format, 0))[0]
    scales = {"nvfp4": torch.float8_e4m3fn, "mxfp4": torch.float8_e8m0fnu}
    scale_shape: tuple[int, ...]
    if spec.block:
        scale_shape, scale_dtype = (outputs, inputs // spec.block), scales.get(spec.format, torch.float16)
    else:
        scale_shape, scale_dtype = (1 if spec.granularity == "tensor" else outputs, 1, *[1] * len(kernel)), dtype
    origin = f"{weight.origin} as {spec}"

    def coarse() -> torch.Tensor:
        found = grid().coarse
        assert found is not None
        return found

    return (
        Weight(weight.shape, format_of(number).code_dtype, lambda: quantized().codes, f"{origin}: codes"),
        Weight(scale_shape, scale_dtype, lambda: grid().scale.to(scale_dtype), f"{scaled.origin} as {spec}: scales in {scale_dtype}"),
        Weight((), torch.float32, coarse, f"{origin}: coarse scale") if spec.format == "nvfp4" else None,
        number,
    )


def _kept(weight: RealWeight, spec: WeightSpec, scratch: Scratch, found: QuantizedWeight) -> tuple[Weight, Weight, Weight | None, str]:
    tensors = {"codes": found.codes, "scale": found.scale}
    if found.coarse is not None:
        tensors["coarse"] = found.coarse
    kept = scratch.keep(f"{weight.origin} as {spec}", tensors)
    return kept["codes"], kept["scale"], kept.get("coarse"), found.format


def _label(number: str, spec: WeightSpec) -> str:
    """What a person calls it: "int4 block-64"."""
    if spec.format in MICRO_FORMATS:
        return spec.format
    return number if spec.granularity == "channel" else f"{number} {spec.granularity}"


def _elements(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
