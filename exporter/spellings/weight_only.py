"""Linears whose weights alone are quantized: they save memory, and time only where a GEMM waits for its weights.

DQ in front of the MatMul   TensorRT (blocks of 64 and 128) and OpenVINO, both of which keep the codes and widen them inside the GEMM
MatMulNBits                 ONNX Runtime, for integers of 4 and 8 bits; with accuracy level 4 also activations become int8, each
                            block of them with a scale of its own
table of numbers            ONNX Runtime, for 4-bit floats that are no INT4: 4 bits in the file, fp32 once the model is loaded
"""

from __future__ import annotations

import onnx_ir as ir
import torch

from dexport.exporter.spellings.integer import codes, integer_scale, row_scale
from dexport.exporter.spellings.site import Site, integer_bits, integer_step, integers_of
from dexport.exporter.spellings.writer import Writer
from dexport.exporter.stored import Stored, derived, pack, packed, permuted, plain, torch_type
from dexport.passes.graph import Weight

_MICROSOFT = "com.microsoft"
_WHOLE_ROW_BLOCK = 128
"""A scale per output channel is repeated for blocks of this size where only blocks are fast."""
_INTEGERS_LEVEL = 4
_FLOAT_LEVEL = 1


def dequantized_linear(site: Site, writer: Writer, *, blocks_only: bool) -> ir.Value:
    """MatMul behind a DQ of the weight, per output channel or per block along the inputs.

    Args:
        blocks_only: give codes of 4 bits with one scale per channel blocks all the same: TensorRT-RTX writes the widened weight to
            memory otherwise (measured).
    """
    weight = codes(site, writer, four_bits=True)
    four_bits = weight.dtype is ir.DataType.INT4
    size = next((s for s in (_WHOLE_ROW_BLOCK, _WHOLE_ROW_BLOCK // 2) if site.inputs % s == 0 and site.inputs > s), 0)
    repeated = blocks_only and four_bits and site.blocks == 1 and size > 0
    if site.blocks == 1 and not repeated:
        real = writer.op("DequantizeLinear", weight, integer_scale(site, writer), axis=1)
    else:
        count = site.inputs // size if repeated else site.blocks
        scale = _in_dtype(site, writer, writer.weight(f"{site.name}.scale", plain(permuted(_scales(site, count), (1, 0)))))
        real = writer.op("DequantizeLinear", weight, scale, axis=0, block_size=site.inputs // count)
    return _biased(site, writer, writer.op("MatMul", site.x, real))


def _scales(site: Site, count: int) -> Weight:
    """Scales [O, count] for the integers of the weight, in the dtype they are stored in."""
    step, rows = integer_step(site.weight_format), site.weight.shape[0]
    dtype = site.weight_scale.dtype
    assert step is not None

    def change(scale: torch.Tensor) -> torch.Tensor:
        return (scale.float() * step).to(dtype).expand(rows, count)

    return derived(site.weight_scale, (rows, count), dtype, f"times {step} for {count} blocks", change)


def _in_dtype(site: Site, writer: Writer, value: ir.Value) -> ir.Value:
    return value if value.dtype is site.dtype else writer.op("Cast", value, to=site.dtype.value)


def _biased(site: Site, writer: Writer, y: ir.Value) -> ir.Value:
    return y if site.bias is None else writer.op("Add", y, site.bias)


def nbits_linear(site: Site, writer: Writer) -> ir.Value:
    """ONNX Runtime's MatMulNBits, which keeps the codes packed in memory; activations as they are, or int8 per block of the weight."""
    bits = integer_bits(site.weight_format)
    count = site.blocks if site.blocks > 1 else -(-site.inputs // _WHOLE_ROW_BLOCK)
    block = site.inputs // site.blocks if site.blocks > 1 else _WHOLE_ROW_BLOCK
    weight = writer.weight(f"{site.name}.codes", _nbits_codes(site, bits, count, block))
    scale = _in_dtype(site, writer, writer.weight(f"{site.name}.scale", plain(_scales(site, count))))
    level = _FLOAT_LEVEL if site.mode == "none" else _INTEGERS_LEVEL
    y = writer.op(
        "MatMulNBits",
        site.x,
        weight,
        scale,
        domain=_MICROSOFT,
        K=site.inputs,
        N=site.weight.shape[0],
        bits=bits,
        block_size=block,
        accuracy_level=level,
    )
    return _biased(site, writer, y)


def _nbits_codes(site: Site, bits: int, count: int, block: int) -> Stored:
    """uint8 [O, blocks, bytes of a block]: codes plus half their range, the last block filled up with zeros of the grid."""
    number, shape = site.weight_format, (site.weight.shape[0], count, block * bits // 8)

    def change(tensor: torch.Tensor) -> torch.Tensor:
        integers = integers_of(number, tensor).to(torch.int16)
        integers = torch.nn.functional.pad(integers, (0, count * block - integers.shape[1])) + 2 ** (bits - 1)
        return (pack(integers.to(torch.uint8)) if bits == 4 else integers.to(torch.uint8)).reshape(shape)

    return plain(derived(site.weight, shape, torch.uint8, f"for MatMulNBits in blocks of {block}", change))


def table_linear(site: Site, writer: Writer) -> ir.Value:
    """Codes of a 4-bit float look their numbers up, once, when the model is loaded."""
    number = site.weight_format
    turned = writer.weight(f"{site.name}.codes", packed(permuted(site.weight, (1, 0)), ir.DataType.UINT4))
    index = writer.op("Cast", turned, to=ir.DataType.INT32.value)
    grid = writer.op("Gather", writer.constant(number.grid(), site.dtype), index, axis=0)
    return _scaled(site, writer, grid)


def float8_weight_linear(site: Site, writer: Writer) -> ir.Value:
    """Codes of an 8-bit float become numbers, once, when the model is loaded."""
    turned = writer.weight(f"{site.name}.codes", plain(permuted(site.weight, (1, 0))))
    return _scaled(site, writer, writer.op("Cast", turned, to=site.dtype.value))


def float4_weight_linear(site: Site, writer: Writer) -> ir.Value:
    """e2m1 codes as FLOAT4E2M1, which OpenVINO widens when it packs the weight."""
    turned = writer.weight(f"{site.name}.codes", packed(permuted(site.weight, (1, 0)), ir.DataType.FLOAT4E2M1))
    return _scaled(site, writer, writer.op("Cast", turned, to=site.dtype.value))


def _scaled(site: Site, writer: Writer, grid: ir.Value) -> ir.Value:
    """x times the grid numbers [I, O] times their scales."""
    if site.blocks == 1:
        real = writer.op("Mul", grid, row_scale(site, writer))
        return _biased(site, writer, writer.op("MatMul", site.x, real))
    outputs, block = site.weight.shape[0], site.inputs // site.blocks
    dtype = torch_type(site.dtype)
    scales = derived(site.weight_scale, (site.blocks, 1, outputs), dtype, "per block", lambda t: t.to(dtype).t().unsqueeze(1))
    scale = writer.weight(f"{site.name}.scale", plain(scales))
    parts = writer.op("Reshape", grid, writer.constant([site.blocks, block, outputs], ir.DataType.INT64))
    real = writer.op("Reshape", writer.op("Mul", parts, scale), writer.constant([site.inputs, outputs], ir.DataType.INT64))
    return _biased(site, writer, writer.op("MatMul", site.x, real))
