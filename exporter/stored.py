"""Weights as they lie in an ONNX file: turned, packed two to a byte, or otherwise not as PyTorch holds them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir
import torch

from dexport.errors import Failure
from dexport.passes.graph import Weight

_TYPES = {
    torch.float32: ir.DataType.FLOAT,
    torch.float16: ir.DataType.FLOAT16,
    torch.bfloat16: ir.DataType.BFLOAT16,
    torch.float64: ir.DataType.DOUBLE,
    torch.float8_e4m3fn: ir.DataType.FLOAT8E4M3FN,
    torch.float8_e5m2: ir.DataType.FLOAT8E5M2,
    torch.int8: ir.DataType.INT8,
    torch.uint8: ir.DataType.UINT8,
    torch.int32: ir.DataType.INT32,
    torch.int64: ir.DataType.INT64,
    torch.bool: ir.DataType.BOOL,
}


def ir_type(dtype: torch.dtype) -> ir.DataType:
    """ONNX's name of a PyTorch dtype."""
    return _TYPES[dtype]


def torch_type(dtype: ir.DataType) -> torch.dtype:
    """The inverse of `ir_type`."""
    return next(ours for ours, theirs in _TYPES.items() if theirs is dtype)


@dataclass(frozen=True)
class Stored:
    """A tensor of an ONNX file: `dtype` and `shape` as ONNX states them; `weight` gives the bytes, which for 4-bit types are packed."""

    weight: Weight
    dtype: ir.DataType
    shape: tuple[int, ...]


def plain(weight: Weight) -> Stored:
    """A weight that is stored as it is."""
    return Stored(weight, ir_type(weight.dtype), weight.shape)


def derived(weight: Weight, shape: Sequence[int], dtype: torch.dtype, how: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Weight:
    """`change` of a weight, made when it is read; `how` tells it from other weights of the same origin."""
    load = weight.load
    return replace(weight, shape=tuple(shape), dtype=dtype, load=lambda: change(load()).contiguous(), origin=f"{weight.origin} {how}")


def permuted(weight: Weight, order: Sequence[int]) -> Weight:
    """The weight with its axes in another order."""
    shape = [weight.shape[i] for i in order]
    return derived(weight, shape, weight.dtype, f"permuted {tuple(order)}", lambda tensor: tensor.permute(*order))


def packed(weight: Weight, dtype: ir.DataType) -> Stored:
    """Codes of 4 bits, one to a byte in `weight` (int8 or uint8), stored two to a byte, the first in the low half (ONNX's order)."""
    count = -(-math.prod(weight.shape) // 2)
    return Stored(derived(weight, (count,), torch.uint8, f"as {dtype.name}", pack), dtype, weight.shape)


def pack(codes: torch.Tensor) -> torch.Tensor:
    """int8 or uint8 of any shape, low 4 bits used -> uint8 [half as many, rounded up]."""
    flat = codes.reshape(-1).view(torch.uint8) & 15
    if flat.numel() % 2:
        flat = torch.cat([flat, flat.new_zeros(1)])
    return flat[0::2] | (flat[1::2] << 4)


def hollow(name: str, stored: Stored) -> ir.LazyTensor:
    """The tensor of an initializer that is written to the data file later."""

    def refuse() -> ir.TensorProtocol:
        raise Failure(name, expected="weights to be read only while the data file is written", got="a read before that", fix="report this")

    return ir.LazyTensor(refuse, dtype=stored.dtype, shape=ir.Shape(stored.shape), name=name)
