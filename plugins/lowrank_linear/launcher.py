"""The C interface of the kernels (launcher.h) for ctypes: a built library and tensors on its device, without TensorRT."""

from __future__ import annotations

import ctypes

import torch

from dexport.plugins.lowrank_linear.shapes import check_shapes
from dexport.plugins.shapes import require_shapes

TYPES = {torch.float16: 0, torch.bfloat16: 1}
"""Of x and of everything else in 16 bits, as launcher.h numbers them."""

_TENSORS = ("x", "weight", "weight_scale", "down", "up", "bias", "gate", "residual", "activation_scale", "y")
_SCALES = ("activation_block", "weight_scales", "activation_scales")
_SIZES = ("rows", "inputs", "outputs", "rank")


class Request(ctypes.Structure):
    """`DexportLowrankLinear` of launcher.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in (*_TENSORS, "workspace")),
        *((name, ctypes.c_int32) for name in ("type", "activation_bits", *_SCALES, *_SIZES, "gelu", "rows_of_gate", "product")),
    ]


def request(
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    down: torch.Tensor,
    up: torch.Tensor,
    bias: torch.Tensor | None,
    gate: torch.Tensor | None,
    residual: torch.Tensor | None,
    activation_scale: torch.Tensor | None,
    activation_format: str,
    activation_block: int,
    gelu: bool,
    y: torch.Tensor,
    product: int = 0,
) -> Request:
    """What a launcher takes, but for the workspace: its size is asked with this. The tensors have to outlive the kernels.

    Raises:
        ValueError: a tensor of another shape (shapes.py) or dtype than the kernels take, or one that is not contiguous.
    """
    check_shapes(x, weight, weight_scale, down, up, bias, gate, residual, activation_scale, activation_block)
    require_shapes({"y": (y, [(*x.shape[:-1], weight.shape[0])])})
    tensors = (x, weight, weight_scale, down, up, bias, gate, residual, activation_scale, y)
    for name, tensor in zip(_TENSORS, tensors, strict=True):
        dtype = torch.uint8 if name == "weight" else x.dtype
        if tensor is not None and (tensor.dtype is not dtype or not tensor.is_contiguous()):
            raise ValueError(f"{name} has to be contiguous and {dtype}, not {tensor.dtype} with strides {tensor.stride()}")
    if x.dtype not in TYPES:
        raise ValueError(f"x has to be float16 or bfloat16, not {x.dtype}")
    outputs, inputs, rows = weight.shape[0], x.shape[-1], x.shape[:-1].numel()
    bits, rank = {"int4": 4, "int8": 8}[activation_format], down.shape[0]
    scales = (activation_block, weight_scale.shape[0], 0 if activation_scale is None else len(activation_scale))
    rows_of_gate = 0 if gate is None else rows // max(gate.shape[:-1].numel(), 1)
    numbers = (TYPES[x.dtype], bits, *scales, rows, inputs, outputs, rank, int(gelu), rows_of_gate)
    return Request(*(None if tensor is None else tensor.data_ptr() for tensor in tensors), None, *numbers, product)
