"""`dexport::block_sparse_attention`: every block of queries attends to the blocks of keys that its list names.

    out_i = sum_j softmax_j(factor * q_i k_j + bias_j) v_j        lse_i = ln sum_j exp(factor * q_i k_j + bias_j)

with j over the keys of the listed blocks. A row that sees no key gives out = 0 and lse = -infinity. The order within a list does not
change the result beyond rounding. Results over disjoint sets of keys merge exactly:

    lse = logaddexp(l1, l2)    out = e^(l1 - lse) o1 + e^(l2 - lse) o2

The last block of queries and that of keys may be ragged. The lists are what sparse attention methods of video models end in (SVG,
arXiv 2502.01776; AdaSpa, 2502.21079; DraftAttention, 2505.14708; VSA, 2505.13389; Sparse-vDiT, 2506.03065).

Notation: B batch, H heads, G heads of keys, L queries, S keys, D size of a head, Q = ceil(L / query_block), K = ceil(S / key_block).

    query        [B, H, L, D] floating
    key, value   [B, G, S, D]; G divides H, and H / G neighbouring heads share them
    indices      [B or 1, H or 1, Q, M] int32, blocks of keys in any order; what is no block from 0 to K - 1 is passed over. None: all
    counts       [B or 1, H or 1, Q] int32, of each list's M entries so many are meant
    modes        [H] int32: 0 all keys, 1 the listed ones, 2 none at all (a head that was pruned); None: 1
    key_bias     [B or 1, H or 1, S] float32, finite or -infinity (a key that nobody sees); None: 0
    query_block, key_block  multiples of 64

The kernel (kernel.cu) computes scores, softmax and sums in float32 and rounds probabilities to the operands' dtype, which the
tolerances of manifest.json say. It makes no gradients. What was executed and what was only compiled: docs/plugins.md.
"""

from __future__ import annotations

import torch

from dexport.plugins.block_sparse_attention.shapes import check_shapes

DENSE, LISTED, SKIPPED = 0, 1, 2
"""The modes of a head."""


def block_sparse_attention_reference(
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
) -> tuple[torch.Tensor, torch.Tensor]:
    """The meaning: out [B, H, L, D] in the dtype of the query and lse [B, H, L] float32.

    Raises:
        ValueError: a tensor of another shape (shapes.py), or a list that names a block twice.
    """
    check_shapes(query, key, value, indices, counts, modes, key_bias, query_block)
    key, value = (tensor.repeat_interleave(query.shape[1] // key.shape[1], 1) for tensor in (key, value))
    scores = factor * (query.float() @ key.float().transpose(-2, -1))
    if key_bias is not None:
        scores = scores + key_bias[..., None, :]
    seen = visible_keys(indices, counts, modes, (query.shape[2], key.shape[2]), (query_block, key_block)).to(scores.device)
    scores = scores.masked_fill(~seen, -torch.inf)
    lse = torch.logsumexp(scores, -1)
    # A row that sees nothing is 0, not exp(-inf + inf).
    chances = torch.exp(scores - torch.where(lse.isneginf(), 0, lse)[..., None])
    return (chances @ value.float()).to(query.dtype), lse


def visible_keys(
    indices: torch.Tensor | None, counts: torch.Tensor | None, modes: torch.Tensor | None, tokens: tuple[int, int], blocks: tuple[int, int]
) -> torch.Tensor:
    """Which keys every query sees: boolean, broadcasts to [B, H, L, S], for `tokens` (L, S) in `blocks` of so many."""
    if (indices is None) != (counts is None):
        raise ValueError("lists of blocks need both indices and counts")
    seen = torch.ones(1, 1, *tokens, dtype=torch.bool)
    if indices is not None and counts is not None:
        block_count = -(-tokens[1] // blocks[1])
        meant = (torch.arange(indices.shape[-1], device=indices.device) < counts[..., None]) & (indices >= 0) & (indices < block_count)
        # What is not meant goes to a column of its own, which is cut off.
        places = torch.where(meant, indices, block_count).long()
        named = torch.zeros(*indices.shape[:-1], block_count + 1, dtype=torch.int32, device=indices.device)
        named = named.scatter_add(-1, places, torch.ones_like(places, dtype=torch.int32))[..., :block_count]
        if named.numel() and int(named.max()) > 1:
            raise ValueError("a list names a block of keys twice")
        seen = named.bool().repeat_interleave(blocks[0], 2)[:, :, : tokens[0]].repeat_interleave(blocks[1], 3)[..., : tokens[1]]
    if modes is not None:
        mode = modes.to(seen.device)[:, None, None]
        seen = (seen | (mode == DENSE)) & (mode != SKIPPED)
    return seen


@torch.library.custom_op("dexport::block_sparse_attention", mutates_args=())
def block_sparse_attention(
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
) -> tuple[torch.Tensor, torch.Tensor]:
    """See the module."""
    return block_sparse_attention_reference(query, key, value, indices, counts, modes, key_bias, factor, query_block, key_block)


@block_sparse_attention.register_fake
def _(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: object) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(query, memory_format=torch.contiguous_format), query.new_empty(query.shape[:-1], dtype=torch.float32)
