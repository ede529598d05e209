"""Quantized operations as int8 GEMMs between Q and DQ with constant scales, the form that every backend's compiler knows.

    static            Q(s) DQ(s) MatMul                                    one constant scale
    table, dynamic    x / s -> clip -> Q(1) DQ(1) MatMul -> * s            the *fold*: a scale that is no constant stays outside Q and DQ

A scale that is computed or gathered and fed to Q or DQ itself makes TensorRT run the GEMM in half precision without a message; the fold
costs no kernel, because both products fuse with their neighbours. Zero points mean 0 everywhere (TensorRT takes no others): an asymmetric
range is a centre that is subtracted before and returns as c W^T behind. The bias comes after the rescaling.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import torch

from dexport.exporter.spellings.site import Site, integer_bits, integer_step, integers_of, scalar_constant
from dexport.exporter.spellings.writer import Writer
from dexport.exporter.stored import derived, packed, plain, torch_type
from dexport.passes.graph import Weight
from dexport.plugins.quantized_linear.reference import dequantized

_SMALLEST = {ir.DataType.FLOAT16: 2.0**-24}
"""Of a dynamic scale; the default is that of `plugins.activations` for a row of zeros."""
_INT4_OPSET = 21
_MIDDLE = {ir.DataType.UINT8: 128}


def integer_linear(site: Site, writer: Writer, *, four_bits: bool, code: ir.DataType = ir.DataType.INT8) -> ir.Value:
    """y [B..., N, O] of a linear whose weight has one scale per tensor or output channel.

    Args:
        four_bits: store codes of 4 bits as INT4 (opset 21) and widen them when the model is loaded; else as INT8.
        code: of activations; the same numbers as UINT8 around 128 are what ONNX Runtime wants: int8 ones that several linears share are
            multiplied in fp32 there (measured).
    """
    real = dequantized_codes(site, writer, axis=1, four_bits=four_bits, own_zeros=code is ir.DataType.UINT8)
    return scaled_product(site, writer, real, code)


def scaled_product(site: Site, writer: Writer, weight: ir.Value, code: ir.DataType) -> ir.Value:
    """y of a linear whose activations pass through numbers of type `code`, with the real weight [I, O] behind its DQ."""
    centre, shift = _centre(site, writer)
    x = site.x if centre is None else writer.op("Sub", site.x, centre)
    quantized, rescale = quantize(site, writer, x, code)
    y = writer.op("MatMul", quantized, weight)
    if rescale is not None:
        y = writer.op("Mul", y, rescale)
    if shift is not None:
        y = writer.op("Add", y, shift)
    bias = _bias(site, writer)
    return y if bias is None else writer.op("Add", y, bias)


def quantize(site: Site, writer: Writer, x: ir.Value, code: ir.DataType) -> tuple[ir.Value, ir.Value | None]:
    """x behind Q and DQ, and the factor that the result of the product still needs (None: none)."""
    constant = scalar_constant(writer, site.activation_scale)
    if constant is not None:
        return _through(writer, clipped(site, writer, x, constant), writer.constant(constant, site.dtype), code), None
    folded, rescale = folded_activation(site, writer, x)
    return _through(writer, folded, writer.constant(1.0, site.dtype), code), rescale


def folded_activation(site: Site, writer: Writer, x: ir.Value) -> tuple[ir.Value, ir.Value]:
    """x over its scale, inside the range of the format, and the scale."""
    rescale = site.activation_scale if site.activation_scale is not None else _dynamic_scale(site, writer, x)
    return clipped(site, writer, writer.op("Div", x, rescale), 1.0), rescale


def clipped(site: Site, writer: Writer, x: ir.Value, scale: float) -> ir.Value:
    """x inside the range of the format times `scale`; Q itself ends the range of 8 bits."""
    number = site.activation_format
    if number.bits == 8:
        return x
    low, high = (writer.constant(end * scale, site.dtype) for end in (number.lowest, number.largest))
    return writer.op("Clip", x, low, high)


def _through(writer: Writer, x: ir.Value, scale: ir.Value, code: ir.DataType) -> ir.Value:
    zero = writer.constant(_MIDDLE.get(code, 0), code)
    return writer.op("DequantizeLinear", writer.op("QuantizeLinear", x, scale, zero), scale, zero)


def _dynamic_scale(site: Site, writer: Writer, x: ir.Value) -> ir.Value:
    """absmax / largest: per row of the last axis, or per picture for a convolution."""
    axes = [-1] if site.window is None else list(range(1, len(site.weight.shape)))
    absmax = writer.op("ReduceMax", writer.op("Abs", x), writer.constant(axes, ir.DataType.INT64), keepdims=1)
    largest = site.activation_format.largest
    scale = writer.op("Div", absmax, writer.constant(largest, site.dtype))
    return writer.op("Max", scale, writer.constant(_SMALLEST.get(site.dtype, 1e-8 / largest), site.dtype))


def codes(site: Site, writer: Writer, *, four_bits: bool) -> ir.Value:
    """The integers of a weight: of a linear turned to [I, O], of a convolution as they are."""
    number = site.weight_format
    turned = site.window is None
    shape = (site.weight.shape[1], site.weight.shape[0]) if turned else site.weight.shape

    def change(tensor: torch.Tensor) -> torch.Tensor:
        integers = integers_of(number, tensor)
        return integers.t() if turned else integers

    weight = derived(site.weight, shape, torch.int8, f"as integers {'turned' if turned else ''}", change)
    small = four_bits and integer_bits(number) == 4 and writer.opset >= _INT4_OPSET
    stored = packed(weight, ir.DataType.INT4) if small else plain(weight)
    return writer.weight(f"{site.name}.codes", stored)


def dequantized_codes(site: Site, writer: Writer, *, axis: int, four_bits: bool, own_zeros: bool) -> ir.Value:
    """The real weight behind its DQ.

    Args:
        axis: of the output channels.
        own_zeros: state the zero points. ONNX Runtime's change of int8 weights to uint8 fails in DQ nodes without them, and on zero points
            that two weights share (measured, 1.32).
    """
    zeros = None
    if own_zeros:
        count = site.weight.shape[0]
        weight = Weight((count,), torch.int8, lambda: torch.zeros(count, dtype=torch.int8), f"{count} zeros")
        zeros = writer.weight(f"{site.name}.zeros", plain(weight))
    integers = _widened(codes(site, writer, four_bits=four_bits), writer)
    return writer.op("DequantizeLinear", integers, integer_scale(site, writer), zeros, axis=axis)


def _widened(integers: ir.Value, writer: Writer) -> ir.Value:
    """INT4 behind a Cast, which a runtime computes once, when it loads the model: DQ of INT4 is no part of any int8 MatMul."""
    return writer.op("Cast", integers, to=ir.DataType.INT8.value) if integers.dtype is ir.DataType.INT4 else integers


def row_scale(site: Site, writer: Writer, step: float = 1.0) -> ir.Value:
    """The weight's scale per output channel times `step`, [O].

    One per tensor is repeated, so that the compiler can merge GEMMs of one input.
    """
    dtype, count = torch_type(site.dtype), site.weight.shape[0]

    def change(scale: torch.Tensor) -> torch.Tensor:
        return (scale.to(dtype) * step).reshape(-1).expand(count)

    return writer.weight(
        f"{site.name}.scale", plain(derived(site.weight_scale, (count,), dtype, f"per channel times {step} as {dtype}", change))
    )


def integer_scale(site: Site, writer: Writer) -> ir.Value:
    """The scale per output channel for the integers of `codes`, [O]."""
    step = integer_step(site.weight_format)
    assert step is not None
    return row_scale(site, writer, step)


def _centre(site: Site, writer: Writer) -> tuple[ir.Value | None, ir.Value | None]:
    """What is subtracted from x, and what returns behind the GEMM: c W^T, where that is not a constant (see `_bias`)."""
    if site.mode == "dynamic-centred":
        axis = writer.constant([-1], ir.DataType.INT64)
        ends = [writer.op(kind, site.x, axis, keepdims=1) for kind in ("ReduceMin", "ReduceMax")]
        centre = writer.op("Mul", writer.op("Add", *ends), writer.constant(0.5, site.dtype))
        return centre, writer.op("Mul", centre, _row_sums(site, writer))
    if site.centre is None:
        return None, None
    source = writer.source(site.centre)
    if source is not None:
        return writer.constant(source.load(), site.dtype), None
    if site.centre.shape is not None and all(d == 1 for d in site.centre.shape):
        return site.centre, writer.op("Mul", site.centre, _row_sums(site, writer))
    real = writer.op("Mul", writer.op("Cast", codes(site, writer, four_bits=False), to=site.dtype.value), integer_scale(site, writer))
    row = writer.op("Reshape", site.centre, writer.constant([1, site.inputs], ir.DataType.INT64))
    return site.centre, writer.op("MatMul", row, real)


def _row_sums(site: Site, writer: Writer) -> ir.Value:
    """The sum of each row of W, [O]."""
    return writer.weight(f"{site.name}.sums", plain(_from_real(site, "row sums", lambda real: real.sum(1))))


def _bias(site: Site, writer: Writer) -> ir.Value | None:
    """The bias, together with c W^T if the centre is a constant."""
    centre, bias = writer.source(site.centre), writer.source(site.bias)
    if centre is None:
        return site.bias

    def shifted(real: torch.Tensor) -> torch.Tensor:
        moved = real @ centre.load().to(real.dtype).expand(real.shape[1])
        return moved if bias is None else moved + bias.load().to(real.dtype)

    how = f"times {centre.origin} plus {bias.origin if bias is not None else 0}"
    return writer.weight(f"{site.name}.bias", plain(_from_real(site, how, shifted)))


def _from_real(site: Site, how: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Weight:
    """`change` of the real weight [O, I] in fp32, a vector [O] in the site's dtype."""
    dtype, count = torch_type(site.dtype), site.weight.shape[0]
    scale, coarse, number = site.weight_scale, site.weight_global, site.weight_format.name

    def made(tensor: torch.Tensor) -> torch.Tensor:
        return change(dequantized(tensor, scale.load(), None if coarse is None else coarse.load(), number)).to(dtype)

    return derived(site.weight, (count,), dtype, f"{how} with {scale.origin}", made)
