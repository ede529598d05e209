"""Quantized linears as FP8 and FP4 GEMMs of TensorRT.

e4m3: as the int8 forms, with float8 between Q and DQ. NVFP4: TensorRT quantizes activations itself (TRT_FP4DynamicQuantize: blocks of 16
neighbours, their scales in e4m3, one global scale that must be a constant); the weight is FP4 with two levels of scales.
"""

from __future__ import annotations

import onnx_ir as ir
import torch

from dexport.exporter.spellings.integer import row_scale, scaled_product
from dexport.exporter.spellings.site import Site, scalar_constant
from dexport.exporter.spellings.writer import Writer
from dexport.exporter.stored import derived, packed, permuted, plain
from dexport.passes.graph import Weight

_NVFP4_BLOCK = 16


def float8_linear(site: Site, writer: Writer) -> ir.Value:
    """y of a linear with e4m3 weights (one scale per tensor or output channel) and e4m3 activations."""
    codes = writer.weight(f"{site.name}.codes", plain(permuted(site.weight, (1, 0))))
    weight = writer.op("DequantizeLinear", codes, row_scale(site, writer), axis=1)
    return scaled_product(site, writer, weight, ir.DataType.FLOAT8E4M3FN)


def float8_rounded(writer: Writer, x: ir.Value, scale: ir.Value) -> ir.Value:
    """x through e4m3 numbers times a constant scale."""
    zero = writer.constant(0.0, ir.DataType.FLOAT8E4M3FN)
    return writer.op("DequantizeLinear", writer.op("QuantizeLinear", x, scale, zero), scale, zero)


def nvfp4_linear(site: Site, writer: Writer) -> ir.Value:
    """y of a linear with NVFP4 weights and activations."""
    coarse = scalar_constant(writer, site.activation_scale)
    assert coarse is not None and site.weight_global is not None
    scale = writer.constant(coarse, ir.DataType.FLOAT)
    scale_type = ir.DataType.FLOAT8E4M3FN.value
    codes, fine = writer.pair(
        "TRT_FP4DynamicQuantize", site.x, scale, domain="trt", axis=-1, block_size=_NVFP4_BLOCK, scale_type=scale_type
    )
    x = _two_levels(writer, codes, fine, scale, -1, site.dtype)
    y = writer.op("MatMul", x, _weight(site, writer, site.weight_global))
    return y if site.bias is None else writer.op("Add", y, site.bias)


def _weight(site: Site, writer: Writer, coarse: Weight) -> ir.Value:
    """The real weight [I, O] of FP4 codes, e4m3 scales of blocks along I, and a global scale."""
    codes = writer.weight(f"{site.name}.codes", packed(permuted(site.weight, (1, 0)), ir.DataType.FLOAT4E2M1))
    fine = writer.weight(f"{site.name}.fine", plain(permuted(site.weight_scale, (1, 0))))
    whole = writer.weight(f"{site.name}.coarse", plain(derived(coarse, (), torch.float32, "as a number", lambda t: t.float().reshape(()))))
    return _two_levels(writer, codes, fine, whole, 0, site.dtype)


def _two_levels(writer: Writer, codes: ir.Value, fine: ir.Value, coarse: ir.Value, axis: int, dtype: ir.DataType) -> ir.Value:
    scale = writer.op("DequantizeLinear", fine, coarse)
    real = writer.op("DequantizeLinear", codes, scale, axis=axis, block_size=_NVFP4_BLOCK)
    return real if dtype is ir.DataType.FLOAT else writer.op("Cast", real, to=dtype.value)
