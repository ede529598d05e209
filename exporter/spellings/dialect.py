"""dexport's own operations enter the ONNX graph whole, as nodes of the domain "dexport"; a spelling replaces them before anything is saved.

The replacement needs what a translation function of torch.onnx.export does not see: which operands are weights, and their sources.
"""

from __future__ import annotations

from typing import Any

import onnxscript
from onnx.defs import OpSchema

DOMAIN = "dexport"
LINEAR, CONVOLUTION, ROUNDED = "QuantizedLinear", "QuantizedConv", "Rounded"
LINEAR_TENSORS = ("x", "weight", "weight_scale", "weight_global", "bias", "activation_scale", "centre")
CONVOLUTION_TENSORS = ("x", "weight", "weight_scale", "bias", "activation_scale")
_NEEDED = 3  # the first tensors of all operations are never absent
_TYPES = [f"tensor({t})" for t in ("float", "float16", "bfloat16", "int8", "uint8", "float8e4m3fn", "float8e5m2")]


def _operator(name: str, tensors: tuple[str, ...], **attributes: OpSchema.AttrType) -> onnxscript.values.Op:
    """An operator of `tensors`, whose types are free, with the given attributes."""
    option = OpSchema.FormalParameterOption
    schema = OpSchema(
        name,
        DOMAIN,
        1,
        inputs=[
            OpSchema.FormalParameter(t, f"T{i}", param_option=option.Single if i < _NEEDED else option.Optional)
            for i, t in enumerate(tensors)
        ],
        outputs=[OpSchema.FormalParameter("y", "T0")],
        type_constraints=[(f"T{i}", _TYPES, "") for i in range(len(tensors))],
        attributes=[OpSchema.Attribute(key, kind, "", required=True) for key, kind in attributes.items()],
    )
    return onnxscript.values.Op(onnxscript.values.Opset(DOMAIN, 1), name, schema)


_TEXT, _NUMBER, _NUMBERS = OpSchema.AttrType.STRING, OpSchema.AttrType.INT, OpSchema.AttrType.INTS
_LINEAR = _operator(
    LINEAR,
    LINEAR_TENSORS,
    weight_format=_TEXT,
    activation_format=_TEXT,
    activation_mode=_TEXT,
    activation_block=_NUMBER,
    micro=_TEXT,
)
_CONVOLUTION = _operator(
    CONVOLUTION,
    CONVOLUTION_TENSORS,
    weight_format=_TEXT,
    activation_format=_TEXT,
    activation_mode=_TEXT,
    stride=_NUMBERS,
    padding=_NUMBERS,
    dilation=_NUMBERS,
    groups=_NUMBER,
)
_ROUNDED = _operator(ROUNDED, ("x", "scale"), format=_TEXT)


def rounded(x: Any, scale: Any, format: str) -> Any:
    """scale * round(x / scale) as one node: an operand of a quantized attention."""
    return _ROUNDED(x, scale, format=format)


def quantized_linear(*operands: Any) -> Any:
    """`dexport::quantized_linear` as one node."""
    tensors, (weight_format, activation_format, mode, block, micro) = operands[:7], operands[7:]
    return _LINEAR(
        *tensors,
        weight_format=weight_format,
        activation_format=activation_format,
        activation_mode=mode,
        activation_block=block,
        micro=micro,
    )


def quantized_conv(*operands: Any) -> Any:
    """`dexport::quantized_conv` as one node."""
    tensors, (weight_format, activation_format, mode, stride, padding, dilation, groups) = operands[:5], operands[5:]
    return _CONVOLUTION(
        *tensors,
        weight_format=weight_format,
        activation_format=activation_format,
        activation_mode=mode,
        stride=list(stride),
        padding=list(padding),
        dilation=list(dilation),
        groups=groups,
    )
