"""PyTorch's operations, where the form that torch.onnx.export writes is not the one that compilers have fast kernels for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnxscript import opset18 as op

import dexport.plugins.quantized_conv.reference
import dexport.plugins.quantized_linear.reference  # noqa: F401  (both register their operation)
from dexport.exporter.spellings import dialect
from dexport.plugins.quantized_attention.reference import PROBABILITY_SCALE

Translations = Mapping[Callable[..., Any], Callable[..., Any]]


def translations() -> Translations:
    """ATen operation -> function that writes it, for torch.onnx.export."""
    return {
        torch.ops.aten.linear.default: linear,
        torch.ops.aten.scaled_dot_product_attention.default: attention,
        torch.ops.aten.slice.Tensor: slice_,
        torch.ops.aten.silu.default: silu,
        torch.ops.dexport.quantized_attention.default: quantized_attention,
        torch.ops.dexport.quantized_linear.default: dialect.quantized_linear,
        torch.ops.dexport.quantized_conv.default: dialect.quantized_conv,
    }


def linear(x: Any, weight: Any, bias: Any = None) -> Any:
    """MatMul with the weight turned to [in, out], bias added after: never Gemm, which has no int8 form in ONNX Runtime."""
    y = op.MatMul(x, op.Transpose(weight, perm=[1, 0]))
    return y if bias is None else op.Add(y, bias)


def attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """MatMul, Softmax, MatMul on [B, heads, L, D], the query scaled first: the form that compilers know as attention.

    A boolean mask becomes an additive one; a causal mask becomes a constant.
    """
    if enable_gqa:
        raise NotImplementedError("grouped-query attention")
    factor = 1.0 / math.sqrt(int(query.shape[-1])) if scale is None else scale
    scores = op.MatMul(op.Mul(query, _scalar(factor, query)), op.Transpose(key, perm=[0, 1, 3, 2]))
    return op.MatMul(op.Softmax(_masked(scores, query, key, attn_mask, is_causal), axis=-1), value)


def quantized_attention(
    query: Any,
    key: Any,
    value: Any,
    mask: Any,
    query_scale: float,
    key_scale: float,
    value_scale: float,
    factor: float,
    causal: bool,
    format: str,
    probabilities: str,
    start_tokens: int,
) -> Any:
    """The same with all four operands rounded, each right in front of its MatMul: compilers fuse FP8 attention only so.

    The query is multiplied first, and its scale with it, which rounds to the same numbers.
    """
    if start_tokens:
        raise NotImplementedError("attention that rounds all keys but the first ones")
    scaled = dialect.rounded(op.Mul(query, _scalar(factor, query)), _scalar(query_scale * factor, query), format)
    turned = dialect.rounded(op.Transpose(key, perm=[0, 1, 3, 2]), _scalar(key_scale, query), format)
    scores = op.Softmax(_masked(op.MatMul(scaled, turned), query, key, mask, causal), axis=-1)
    chances = dialect.rounded(scores, _scalar(PROBABILITY_SCALE, query), probabilities)
    return op.MatMul(chances, dialect.rounded(value, _scalar(value_scale, query), format))


def _masked(scores: Any, query: Any, key: Any, mask: Any, causal: bool) -> Any:
    """Scores with everything added that says what is not seen."""
    if causal:
        scores = op.Add(scores, _causal(int(query.shape[-2]), int(key.shape[-2]), query.dtype))
    if mask is None:
        return scores
    if mask.dtype == ir.DataType.BOOL:
        mask = op.Where(mask, _scalar(0.0, query), _scalar(_lowest(query.dtype), query))
    return op.Add(scores, mask)


def _scalar(number: float, like: Any) -> Any:
    return op.Constant(value=ir.serde.serialize_tensor(ir.tensor(number, dtype=like.dtype)))


def _lowest(dtype: ir.DataType) -> float:
    return float(torch.finfo({ir.DataType.FLOAT16: torch.float16, ir.DataType.BFLOAT16: torch.bfloat16}.get(dtype, torch.float32)).min)


def _causal(rows: int, columns: int, dtype: ir.DataType) -> Any:
    mask = np.triu(np.full((rows, columns), _lowest(dtype), np.float32), 1).astype(dtype.numpy())
    return op.Constant(value=ir.serde.serialize_tensor(ir.tensor(mask)))


def slice_(x: Any, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Any:
    """Slice with constant bounds."""
    return op.Slice(x, _ints([start or 0]), _ints([_LAST if end is None else end]), _ints([dim]), _ints([step]))


_LAST = 2**63 - 1


def _ints(values: Sequence[int]) -> Any:
    return op.Constant(value_ints=list(values))


def silu(x: Any) -> Any:
    """x * sigmoid(x)."""
    return op.Mul(x, op.Sigmoid(x))
