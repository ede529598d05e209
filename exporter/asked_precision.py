"""What every matrix product and convolution of an ONNX file is asked to compute in, so that what a compiler made of it can be compared.

A product is asked for int8, fp8 or nvfp4 where both of its operands come out of a DequantizeLinear; else for the floating-point
type of its first operand, which quantized weights are widened to.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import NodeProto, TensorProto

from dexport.runtime.finalize.precision import Product

_PRODUCTS = ("MatMul", "Gemm", "Conv", "ConvTranspose")
_MOVES = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Slice", "Split", "Concat", "Expand")
"""Operations that pass numbers on as they are: a compiler looks through them to the DequantizeLinear."""
_EPILOGUE = ("Mul", "Add")
_MOST_FUSED = 2
_NAMES: dict[int, str] = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.INT8: "int8",
    TensorProto.FLOAT8E4M3FN: "fp8",
    TensorProto.FLOAT4E2M1: "nvfp4",
    TensorProto.INT4: "int4",
}


def asked_precisions(path: Path) -> tuple[Product, ...]:
    """The products of a model; those in subgraphs and those whose types the file does not say are left out.

    Args:
        path: an ONNX file; its external data are not read.
    """
    graph = onnx.load(str(path), load_external_data=False).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info, *graph.output)}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    products = [(node, _asked(node, makers, types)) for node in graph.node if node.name and node.op_type in _PRODUCTS]
    outputs = {value.name for value in graph.output}
    return tuple(
        Product((*_names(node, readers, outputs), *_quantizers(node, makers)), precision) for node, precision in products if precision
    )


def _names(node: NodeProto, readers: dict[str, list[NodeProto]], outputs: set[str]) -> tuple[str, ...]:
    """Names of a product, of the scalings and additions through which alone its result goes on, and of the output that it becomes."""
    names, last, following = [node.name], node.output[0], readers.get(node.output[0], [])
    while len(following) == 1 and following[0].op_type in _EPILOGUE and len(names) <= _MOST_FUSED:
        names, last = [*names, following[0].name], following[0].output[0]
        following = readers.get(last, [])
    return tuple(name for name in (*names, last if last in outputs else "") if name)


def _quantizers(node: NodeProto, makers: dict[str, NodeProto]) -> list[str]:
    """Names of the nodes that dequantize a product's first operand; OpenVINO calls a product after them now and then."""
    maker = _unmoved(node.input[0], makers)
    return [maker.name] if maker is not None and maker.op_type == "DequantizeLinear" and maker.name else []


def _asked(node: NodeProto, makers: dict[str, NodeProto], types: dict[str, int]) -> str | None:
    codes = [_codes(name, makers, types) for name in node.input[:2]]
    narrow = codes[0] if all(codes) else None
    return narrow or _NAMES.get(types.get(node.input[0], TensorProto.UNDEFINED))


def _codes(name: str, makers: dict[str, NodeProto], types: dict[str, int]) -> str | None:
    """The format of the codes that a tensor is dequantized from; None if it is not, or their type is not known."""
    maker = _unmoved(name, makers)
    if maker is None or maker.op_type != "DequantizeLinear":
        return None
    kind = types.get(maker.input[0])
    if kind is None:  # of a QuantizeLinear, which says it by its zero point
        source = makers.get(maker.input[0])
        kind = types.get(source.input[2]) if source is not None and len(source.input) > 2 else None
    return _NAMES.get(kind) if kind is not None else None


def _unmoved(name: str, makers: dict[str, NodeProto]) -> NodeProto | None:
    """The node that computes a tensor, looked for through those that only pass numbers on."""
    maker = makers.get(name)
    while maker is not None and maker.op_type in _MOVES:
        maker = makers.get(maker.input[0])
    return maker
