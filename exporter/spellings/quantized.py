"""Replaces dexport's quantized operations in an ONNX graph by the form of one backend."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from dexport.errors import Failure
from dexport.exporter.spellings import dialect
from dexport.exporter.spellings.convolution import conv_integer, integer_convolution
from dexport.exporter.spellings.floating import float8_linear, float8_rounded, nvfp4_linear
from dexport.exporter.spellings.integer import integer_linear
from dexport.exporter.spellings.lowrank import branch_beside, lowrank_linear, takes
from dexport.exporter.spellings.site import Site, integer_bits, integer_step, read_site
from dexport.exporter.spellings.weight_only import (
    dequantized_linear,
    float4_weight_linear,
    float8_weight_linear,
    nbits_linear,
    table_linear,
)
from dexport.exporter.spellings.writer import Writer
from dexport.exporter.stored import Stored, plain
from dexport.passes.graph import Weight
from dexport.targets.formats import PLUGINS, Backend

FP4_OPSET = 23
"""ONNX has FLOAT4E2M1 from here on."""


def spell(model: ir.Model, weights: Mapping[str, Weight], backend: Backend) -> dict[str, Stored]:
    """Replaces every node of the domain "dexport" in `model`.

    Returns:
        Initializer name -> weight, of those that the graph had and of those that spellings made.

    Raises:
        Failure: an operation has no form on this backend (`quantized_forms.exact` tells before anything is built).
    """
    writer = Writer(model, weights)
    model.opset_imports.pop(dialect.DOMAIN, None)  # it comes back with the first node of a plugin
    for node in list(model.graph):
        if node.domain != dialect.DOMAIN:
            continue
        rounded = node.op_type == dialect.ROUNDED
        result, last = (_rounded(node, writer, backend), node) if rounded else _spelled(node, writer, backend)
        old = last.outputs[0]
        result.shape, result.type = old.shape, old.type
        model.graph.insert_before(node, writer.nodes())
        old.replace_all_uses_with(result, replace_graph_outputs=True)
        model.graph.remove(list(dict.fromkeys((last, node))), safe=True)
    named = {name: plain(weights[name]) for name in model.graph.initializers if name in weights}
    return named | writer.stored


def _spelled(node: ir.Node, writer: Writer, backend: Backend) -> tuple[ir.Value, ir.Node]:
    """The result of a site, and the node whose result it is: the site's, or the sum with the branch that went into it."""
    site = read_site(node, writer)
    if backend in PLUGINS and site.window is None and takes(site):
        branch = branch_beside(node, writer)
        return lowrank_linear(site, writer, branch), node if branch is None else branch.sum
    spelled = _convolution(site, writer, backend) if site.window is not None else _linear(site, writer, backend)
    if spelled is None:
        fix = "choose another recipe, or build with --allow-degrade"
        raise Failure(site.name, expected=f"a form that {backend} computes exactly", got=site.form, fix=fix)
    return spelled, node


def _rounded(node: ir.Node, writer: Writer, backend: Backend) -> ir.Value:
    """An operand of an attention: only TensorRT fuses what stands behind it."""
    (x, scale), number = node.inputs, node.attributes.get_string("format")
    assert x is not None and scale is not None
    if backend not in ("tensorrt-rtx", "tensorrt-kit") or number != "e4m3":
        fix = "choose another recipe, or build with --allow-degrade"
        raise Failure("attention", expected=f"a form that {backend} computes exactly", got=f"operands in {number}", fix=fix)
    return float8_rounded(writer, x, scale)


def _linear(site: Site, writer: Writer, backend: Backend) -> ir.Value | None:
    """The linear in the form of a backend, None if it has none."""
    weight, activation = site.weight_format, site.activation_format
    tensorrt = backend in ("tensorrt-rtx", "tensorrt-kit")
    integers = integer_step(weight) is not None
    if site.micro:
        return nvfp4_linear(site, writer) if tensorrt and site.micro == "nvfp4" and writer.opset >= FP4_OPSET else None
    if site.mode == "none":
        return _weight_only(site, writer, backend)
    if backend == "onnxruntime-cuda":
        return None
    if backend == "onnxruntime-cpu" and integers and activation.name == "int8" and site.block == site.inputs // site.blocks:
        return nbits_linear(site, writer) if site.mode == "dynamic" and integer_bits(weight) == 4 else None
    if site.blocks > 1 or site.block:
        return None
    if activation.is_integer and integers:
        code = ir.DataType.UINT8 if backend == "onnxruntime-cpu" else ir.DataType.INT8
        # TensorRT-RTX does not build INT4 weights with INT8 activations.
        return integer_linear(site, writer, four_bits=not tensorrt, code=code)
    if activation.name == weight.name == "e4m3" and tensorrt:
        return float8_linear(site, writer)
    return None


def _weight_only(site: Site, writer: Writer, backend: Backend) -> ir.Value | None:
    number = site.weight_format
    integers = integer_step(number) is not None
    if number.code_dtype.itemsize == 1 and number.code_dtype.is_floating_point:
        return float8_weight_linear(site, writer) if backend in ("onnxruntime-cpu", "openvino") else None
    if backend in ("onnxruntime-cpu", "onnxruntime-cuda"):
        if integers and (number.is_integer or integer_bits(number) == 4):
            return nbits_linear(site, writer)
        return table_linear(site, writer) if number.bits == 4 else None
    if backend == "openvino" and number.name == "e2m1":
        return float4_weight_linear(site, writer)
    return dequantized_linear(site, writer, blocks_only=backend != "openvino") if integers else None


def _convolution(site: Site, writer: Writer, backend: Backend) -> ir.Value | None:
    integers = integer_step(site.weight_format) is not None
    if backend == "onnxruntime-cuda" or not integers or not (site.mode == "none" or site.activation_format.is_integer):
        return None
    if backend == "onnxruntime-cpu" and site.mode != "none":
        return conv_integer(site, writer)
    return integer_convolution(site, writer, four_bits=backend == "openvino", own_zeros=backend == "onnxruntime-cpu")
