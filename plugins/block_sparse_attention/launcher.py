"""The C interface of the kernel (launcher.h) for ctypes: a built library and tensors on its device, without TensorRT."""

from __future__ import annotations

import ctypes

import torch

from dexport.plugins.block_sparse_attention.shapes import check_shapes
from dexport.plugins.shapes import require_shapes

TYPES = {torch.float16: 0, torch.bfloat16: 1}
"""Of query, key, value and out, as launcher.h numbers them."""

_POINTERS = ("query", "key", "value", "indices", "counts", "modes", "key_bias", "out", "lse")
_SHORT = (("type", ctypes.c_int16), ("key_heads", ctypes.c_uint16))
_NUMBERS = ("batch", "heads", "query_tokens", "key_tokens", "head_size", "query_block", "key_block", "list_length")
_BROADCAST = ("list_batch", "list_heads", "bias_batch", "bias_heads")


class Request(ctypes.Structure):
    """`DexportBlockSparseAttention` of launcher.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in _POINTERS),
        ("factor", ctypes.c_float),
        *_SHORT,
        *((name, ctypes.c_int32) for name in (*_NUMBERS, *_BROADCAST)),
    ]


def request(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    indices: torch.Tensor | None,
    counts: torch.Tensor | None,
    modes: torch.Tensor | None,
    key_bias: torch.Tensor | None,
    factor: float,
    query_block: int,
    key_block: int,
    out: torch.Tensor,
    lse: torch.Tensor | None,
) -> Request:
    """What a launcher takes; the tensors have to outlive the kernel.

    Raises:
        ValueError: a tensor of another shape (shapes.py) or dtype than the kernel takes, or one that is not contiguous.
    """
    tensors = (query, key, value, indices, counts, modes, key_bias, out, lse)
    dtypes = (query.dtype,) * 3 + (torch.int32,) * 3 + (torch.float32, query.dtype, torch.float32)
    for name, tensor, dtype in zip(_POINTERS, tensors, dtypes):
        if tensor is not None and (tensor.dtype is not dtype or not tensor.is_contiguous()):
            raise ValueError(f"{name} has to be contiguous and {dtype}, not {tensor.dtype} with strides {tensor.stride()}")
    if query.dtype not in TYPES:
        raise ValueError(f"query has to be float16 or bfloat16, not {query.dtype}")
    check_shapes(query, key, value, indices, counts, modes, key_bias, query_block)
    require_shapes({"out": (out, [tuple(query.shape)]), "lse": (lse, [tuple(query.shape[:-1])])})
    batch, heads, tokens, size = query.shape
    lists = (0, 1, 1) if indices is None else (indices.shape[-1], *indices.shape[:2])
    biases = (1, 1) if key_bias is None else key_bias.shape[:2]
    sizes = (batch, heads, tokens, key.shape[2], size)
    numbers = (TYPES[query.dtype], key.shape[1], *sizes, query_block, key_block, *lists, *biases)
    return Request(*(None if tensor is None else tensor.data_ptr() for tensor in tensors), factor, *numbers)
