"""What ModelOpt found for a layer, as a treatment of ours and as the values of a site.

    amax                -> scale = amax / largest number of the format
    pre_quant_scale     -> multiplier in front of the site
    low-rank factors    -> branch beside it
    weight, as stored   -> codes; where ModelOpt rounds twice (W4A8: INT4 in blocks, then e4m3) the codes are of the last rounding, which is
                           exact: the numbers of the first are rounded, then those of the second are stored

Where a target computes something else instead (see `quantized_forms.nearest`), the weight's scales are found anew from the stored weight;
the input's amax, which is a magnitude and belongs to no format, stays.

Notation: O outputs, I inputs, r rank, N inputs in a block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch

from dexport.errors import UserError
from dexport.exporter.modelopt_bridge import Quantizer, SiteValues
from dexport.passes.graph import Weight
from dexport.passes.quantization.parts import RealWeight, given_part, quantized_part
from dexport.passes.quantization.ranges import positive
from dexport.passes.quantization.recipe import MICRO_FORMATS, ActivationSpec, BalanceSpec, LowRankSpec, Treatment, WeightSpec
from dexport.passes.quantization.scratch import Scratch
from dexport.passes.quantization.values import ActivationValues, QuantizedPart
from dexport.passes.quantization.values import SiteValues as Decided
from dexport.passes.quantization.weights import WeightGrid
from dexport.plugins.formats import format_of

_E4M3_LARGEST = 448.0
_SAME = 1e-3
"""A global scale of NVFP4 is taken from the weight itself; ModelOpt's may differ by its own dtype's rounding."""
Shared = dict[Any, Any]
"""Multipliers and activations by what they hold: sites that do the same to one value share them, so that compilers see one."""

Value = TypeVar("Value")


@dataclass(frozen=True)
class Context:
    """What the values of a site depend on beside the checkpoint.

    Attributes:
        source: name of the value that the site reads.
        dtype: of the graph's activations.
        shared: of the graph.
    """

    source: str
    dtype: torch.dtype
    scratch: Scratch
    shared: Shared


def treatment_of(where: str, values: SiteValues) -> Treatment:
    """What ModelOpt does to a layer, in the words of recipes.

    Raises:
        UserError: something that the operations of dexport cannot say; names it.
    """
    shape, last, inputs = tuple(values.weight.shape), values.weights[-1], values.inputs
    if len(shape) > 2 and (values.pre_quant_scale is not None or values.low_rank is not None):
        raise _unknown(where, "a pre_quant_scale or low-rank branch of a convolution")
    if last.micro == "nvfp4" and last.amax is not None:
        largest = values.weight.abs().amax().float()
        if len(values.weights) > 1 or not torch.isclose(last.amax.float(), largest, rtol=_SAME):
            raise _unknown(where, "a global scale of NVFP4 that is not the weight's largest magnitude")
    if inputs is not None and inputs.micro == "nvfp4" and inputs.amax is None:
        raise UserError(where, expected="an amax of its input", got="none", fix="calibrate it in ModelOpt")
    rank = None if values.low_rank is None else int(values.low_rank[0].shape[0])
    return Treatment(
        weights=_weight_spec(last, shape),
        activations=None if inputs is None else _activation_spec(inputs),
        balance=None if values.pre_quant_scale is None else BalanceSpec(method="given"),
        low_rank=None if rank is None else LowRankSpec(rank=rank),
    )


def first_rounding(values: SiteValues) -> str:
    """What a weight is rounded to before it is rounded to what is stored, "" if it is rounded once."""
    shape = tuple(values.weight.shape)
    specs = [_weight_spec(quantizer, shape) for quantizer in values.weights[:-1]]
    return ", ".join(f"{spec.format} {spec.granularity}" for spec in specs)


def decided_values(origin: str, values: SiteValues, treatment: Treatment, context: Context) -> Decided:
    """The values of a site.

    Args:
        origin: names the layer in its file; tells its codes from others.
        treatment: `treatment_of` the values, or what the target does instead.
    """
    spec = treatment.weights
    assert spec is not None
    multiplier = None
    if values.pre_quant_scale is not None:
        multiplier = _shared(context, ("multiplier", _content(values.pre_quant_scale)), values.pre_quant_scale.float())
    activations = None
    if treatment.activations is not None:
        activations = _activations(values.inputs, treatment.activations, None if multiplier is None else id(multiplier), context)
    branch = None
    if values.low_rank is not None:
        kept = [_held(f"{origin} {name}", factor, context.dtype) for name, factor in zip(("down", "up"), values.low_rank)]
        branch = kept[0], kept[1]
    return Decided((_part(origin, values, spec, activations, context),), multiplier=multiplier, branch=branch)


def _part(origin: str, values: SiteValues, spec: WeightSpec, activations: ActivationValues | None, context: Context) -> QuantizedPart:
    """Codes on ModelOpt's grid, or on one of ours where another format was asked for."""
    stored, shape = values.weight, tuple(values.weight.shape)
    last = values.weights[-1]
    if spec != _weight_spec(last, shape) or last.micro:
        return quantized_part(RealWeight(lambda: stored.float(), shape, origin), spec, activations, context.scratch, context.dtype)
    before = [_grid(quantizer, shape) for quantizer in values.weights[:-1]]

    def read() -> torch.Tensor:
        weight = stored.float()
        for grid in before:
            weight = grid.round(weight)
        return weight

    return given_part(RealWeight(read, shape, origin), _grid(last, shape), spec, activations, context.dtype)


def _block(quantizer: Quantizer, inputs: int) -> int:
    """Inputs that share a scale: the last block may be cut short, then smaller ones with equal scales say the same."""
    whole = quantizer.amax is None or quantizer.amax.dim() < 2 or quantizer.amax.shape[1] == 1
    return 0 if whole else math.gcd(quantizer.block, inputs)


def _weight_spec(quantizer: Quantizer, shape: tuple[int, ...]) -> WeightSpec:
    if quantizer.micro:
        return WeightSpec(format=quantizer.micro)
    assert quantizer.amax is not None
    block = _block(quantizer, shape[1])
    return WeightSpec(format=quantizer.format, granularity=f"block-{block}" if block else "channel" if quantizer.amax.dim() else "tensor")


def _activation_spec(quantizer: Quantizer) -> ActivationSpec:
    return ActivationSpec(format=quantizer.micro, mode="dynamic") if quantizer.micro else ActivationSpec(format=quantizer.format)


def _grid(quantizer: Quantizer, shape: tuple[int, ...]) -> WeightGrid:
    """The numbers that a weight [O, I, ...] is rounded to."""
    assert quantizer.amax is not None
    scale = positive(quantizer.amax.float() / format_of(quantizer.format).largest)
    if block := _block(quantizer, shape[1]):
        return WeightGrid(quantizer.format, scale.repeat_interleave(quantizer.block // block, 1)[:, : shape[1] // block])
    return WeightGrid(quantizer.format, scale.reshape(-1, *[1] * (len(shape) - 1)))


def _activations(inputs: Quantizer | None, spec: ActivationSpec, multiplier: int | None, context: Context) -> ActivationValues:
    """How the input is rounded: to a scale that follows from ModelOpt's amax, or from itself."""
    name, block = MICRO_FORMATS.get(spec.format, (spec.format, spec.block))
    micro = spec.format if spec.format in MICRO_FORMATS else ""
    found = ActivationValues(name, spec.mode, block, micro)
    if spec.mode == "static" or micro == "nvfp4":
        assert inputs is not None and inputs.amax is not None
        amax = inputs.amax.float()
        found = replace(found, scale=positive(amax / (format_of(name).largest * (_E4M3_LARGEST if micro else 1.0))))
        return _shared(context, (found.format, found.mode, micro, float(amax), multiplier), found)
    return found


def _shared(context: Context, key: tuple[Any, ...], value: Value) -> Value:
    found: Value = context.shared.setdefault((context.source, *key), value)
    return found


def _content(tensor: torch.Tensor) -> bytes:
    return tensor.detach().float().contiguous().numpy().tobytes()


def _held(origin: str, factor: torch.Tensor, dtype: torch.dtype) -> Weight:
    return Weight(tuple(factor.shape), dtype, lambda: factor.to(dtype), f"{origin} in {dtype}")


def _unknown(where: str, got: str) -> UserError:
    fix = "choose another ModelOpt configuration, or a recipe of dexport"
    return UserError(where, expected="an arithmetic that dexport knows", got=got, fix=fix)
