"""Which shapes the tensors of `block_sparse_attention` have to have."""

from __future__ import annotations

from itertools import product

import torch

from dexport.plugins.shapes import require_shapes


def check_shapes(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    indices: torch.Tensor | None,
    counts: torch.Tensor | None,
    modes: torch.Tensor | None,
    key_bias: torch.Tensor | None,
    query_block: int,
) -> None:
    """Compares all shapes with those that reference.py names.

    Raises:
        ValueError: a tensor of another shape, indices without counts or the reverse, or heads that cannot share.
    """
    if query.dim() != 4 or key.dim() != 4 or value.dim() != 4:
        raise ValueError(f"query, key and value have 4 axes, not {query.dim()}, {key.dim()} and {value.dim()}")
    if (indices is None) != (counts is None):
        raise ValueError("lists of blocks need both indices and counts")
    (batch, heads, queries, size), (key_heads, keys) = query.shape, key.shape[1:3]
    if key_heads != value.shape[1] or not key_heads or heads % key_heads:
        raise ValueError(f"{heads} heads of queries cannot share {key_heads} of keys and {value.shape[1]} of values")
    blocks, length = -(-queries // query_block), 0 if indices is None else indices.shape[-1]
    shared = list(product((batch, 1), (heads, 1)))
    require_shapes(
        {
            "key": (key, [(batch, key_heads, keys, size)]),
            "value": (value, [tuple(key.shape)]),
            "indices": (indices, [(*both, blocks, length) for both in shared]),
            "counts": (counts, [(*(shared[0] if indices is None else indices.shape[:2]), blocks)]),
            "modes": (modes, [(heads,)]),
            "key_bias": (key_bias, [(*both, keys) for both in shared]),
        }
    )
