"""Rounding of rows and weights as a treatment says, without a graph: what searches try out."""

from __future__ import annotations

import torch

from dexport.passes.quantization.recipe import MICRO_FORMATS, ActivationSpec, WeightSpec
from dexport.passes.quantization.weights import weight_grid
from dexport.plugins.activations import quantize_micro_blocks, quantize_rows
from dexport.plugins.formats import fake_quantize, format_of


def simulated_weight(weight: torch.Tensor, spec: WeightSpec) -> torch.Tensor:
    """The weight [O, I] rounded to the nearest numbers of its grid, float32."""
    return weight_grid(weight, spec).round(weight)


def simulated_activations(rows: torch.Tensor, spec: ActivationSpec | None) -> torch.Tensor:
    """Rows [R, I] rounded: dynamic modes as they are; static ones and tables with one scale over all rows. None: not rounded."""
    if spec is None:
        return rows
    name, block = MICRO_FORMATS.get(spec.format, (spec.format, spec.block))
    number = format_of(name.split("|")[0])
    absmax = rows.abs().amax().clamp_min(1e-8)
    if spec.format in MICRO_FORMATS:
        coarse = absmax / (number.largest * 448) if spec.format == "nvfp4" else None
        return quantize_micro_blocks(rows, number, block, coarse)
    if spec.mode.startswith("dynamic"):
        return quantize_rows(rows, number, block)
    return fake_quantize(rows, absmax / number.largest, number)
