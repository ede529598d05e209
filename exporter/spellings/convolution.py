"""Quantized convolutions: Q and DQ around Conv for the compilers that fuse them, ConvInteger for ONNX Runtime, which does not."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from dexport.exporter.spellings.integer import clipped, codes, dequantized_codes, folded_activation, integer_scale, quantize
from dexport.exporter.spellings.site import Site, scalar_constant
from dexport.exporter.spellings.writer import Writer


def integer_convolution(site: Site, writer: Writer, *, four_bits: bool, own_zeros: bool) -> ir.Value:
    """Conv between DQ of the activation and DQ of the weight, the bias behind the rescaling."""
    x, rescale = (site.x, None) if site.mode == "none" else quantize(site, writer, site.x, ir.DataType.INT8)
    real = dequantized_codes(site, writer, axis=0, four_bits=four_bits, own_zeros=own_zeros)
    y = writer.op("Conv", x, real, **_window(site))
    if rescale is not None:
        y = writer.op("Mul", y, rescale)
    return _biased(site, writer, y)


def conv_integer(site: Site, writer: Writer) -> ir.Value:
    """ConvInteger: its activations are uint8 with 128 for zero, its result int32."""
    zero = writer.constant(128, ir.DataType.UINT8)
    constant = scalar_constant(writer, site.activation_scale)
    one = writer.constant(1.0, site.dtype)
    if constant is None:
        folded, scale = folded_activation(site, writer, site.x)
        quantized = writer.op("QuantizeLinear", folded, one, zero)
    else:
        scale = writer.constant(constant, site.dtype)
        quantized = writer.op("QuantizeLinear", clipped(site, writer, site.x, constant), scale, zero)
    total = writer.op("ConvInteger", quantized, codes(site, writer, four_bits=False), zero, **_window(site))
    shape = writer.constant([1, site.weight.shape[0], *[1] * (len(site.weight.shape) - 2)], ir.DataType.INT64)
    y = writer.op("Mul", writer.op("Cast", total, to=site.dtype.value), writer.op("Reshape", integer_scale(site, writer), shape))
    return _biased(site, writer, writer.op("Mul", y, scale))


def _window(site: Site) -> dict[str, Any]:
    window = site.window
    assert window is not None
    pads = [*window.padding, *window.padding]
    return {"strides": list(window.stride), "pads": pads, "dilations": list(window.dilation), "group": window.groups}


def _biased(site: Site, writer: Writer, y: ir.Value) -> ir.Value:
    if site.bias is None:
        return y
    shape = writer.constant([1, site.weight.shape[0], *[1] * (len(site.weight.shape) - 2)], ir.DataType.INT64)
    return writer.op("Add", y, writer.op("Reshape", site.bias, shape))
