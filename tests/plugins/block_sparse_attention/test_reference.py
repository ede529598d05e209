"""`block_sparse_attention` against dense attention with a mask, and as an operation of PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from dexport.plugins.block_sparse_attention.reference import DENSE, LISTED, SKIPPED, block_sparse_attention, visible_keys

QUERIES, KEYS, HEAD, BLOCK = 11, 10, 8, 4
LISTS = [[[[2, 0, 0], [1, 0, 0], [0, 1, 2]], [[0, 9, -1], [2, 2, 2], [1, 0, 2]]]]
COUNTS = [[[1, 2, 3], [3, 0, 1]]]
SEEN = [[{2}, {0, 1}, {0, 1, 2}], [{0}, set(), {1}]]
"""Which blocks of keys the blocks of queries of both heads see."""


def _arguments(**changes: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 2, size, HEAD, generator=generator) for size in (QUERIES, KEYS, KEYS))
    lists = {"indices": torch.tensor(LISTS, dtype=torch.int32), "counts": torch.tensor(COUNTS, dtype=torch.int32)}
    plain = {"query": query, "key": key, "value": value, **lists, "modes": None, "key_bias": None}
    return plain | {"factor": 0.3, "query_block": BLOCK, "key_block": BLOCK} | changes


def _mask() -> torch.Tensor:
    blocks = torch.tensor([[[block in seen for block in range(3)] for seen in head] for head in SEEN])
    return blocks[:, torch.arange(QUERIES) // BLOCK][:, :, torch.arange(KEYS) // BLOCK]


def test_is_dense_attention_under_the_mask_of_the_lists() -> None:
    bias = torch.linspace(-1, 1, KEYS).expand(2, 1, KEYS).clone()
    bias[1, 0, 3] = -torch.inf
    arguments = _arguments(key_bias=bias)
    out, lse = block_sparse_attention(**arguments)
    mask = torch.where(_mask()[None], bias[:, :, None], -torch.inf)
    wanted = functional.scaled_dot_product_attention(arguments["query"], arguments["key"], arguments["value"], mask, scale=0.3)
    empty = ~_mask().any(-1).expand(2, -1, -1)
    assert int(empty.sum()) == 2 * BLOCK
    assert torch.equal(out[empty], torch.zeros_like(out[empty])) and lse[empty].isneginf().all()
    torch.testing.assert_close(out[~empty], wanted[~empty])
    scores = 0.3 * arguments["query"] @ arguments["key"].transpose(-2, -1) + mask
    torch.testing.assert_close(lse[~empty], scores.exp().sum(-1).log()[~empty])


def test_without_lists_or_with_all_blocks_it_is_dense() -> None:
    every = torch.tensor([2, 0, 1], dtype=torch.int32).expand(1, 1, 3, 3).contiguous()
    full = torch.full((1, 1, 3), 3, dtype=torch.int32)
    arguments = _arguments(indices=None, counts=None)
    wanted = functional.scaled_dot_product_attention(arguments["query"], arguments["key"], arguments["value"], scale=0.3)
    for changes in ({"indices": None, "counts": None}, {"indices": every, "counts": full}):
        torch.testing.assert_close(block_sparse_attention(**_arguments(**changes))[0], wanted)


def test_modes_choose_per_head() -> None:
    listed, dense = (block_sparse_attention(**_arguments(modes=m))[0] for m in (None, torch.tensor([DENSE, DENSE])))
    mixed = block_sparse_attention(**_arguments(modes=torch.tensor([LISTED, DENSE], dtype=torch.int32)))[0]
    assert torch.equal(mixed, torch.stack([listed[:, 0], dense[:, 1]], 1))
    skipped, lse = block_sparse_attention(**_arguments(modes=torch.tensor([SKIPPED, LISTED], dtype=torch.int32)))
    assert not skipped[:, 0].any() and lse[:, 0].isneginf().all() and torch.equal(skipped[:, 1], listed[:, 1])


def test_heads_share_keys_in_groups() -> None:
    """Neighbours share, as in grouped-query attention; lists stay those of the queries' heads."""
    generator = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(2, heads, size, HEAD, generator=generator) for heads, size in ((6, QUERIES), (2, KEYS), (2, KEYS)))
    given = _arguments(query=query, key=key, value=value, indices=None, counts=None)
    wanted = functional.scaled_dot_product_attention(query, key, value, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(block_sparse_attention(**given)[0], wanted)
    lists = {"indices": torch.tensor(LISTS).repeat(1, 3, 1, 1), "counts": torch.tensor(COUNTS).repeat(1, 3, 1)}
    listed = given | {name: rows.to(torch.int32) for name, rows in lists.items()}
    apart = listed | {name: listed[name].repeat_interleave(3, 1) for name in ("key", "value")}
    for found, expected in zip(block_sparse_attention(**listed), block_sparse_attention(**apart)):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(("heads", "of_value"), [(4, 4), (0, 0), (2, 3)])
def test_says_which_heads_do_not_go_together(heads: int, of_value: int) -> None:
    query, key, value = (torch.zeros(1, n, 5, HEAD) for n in (6, heads, of_value))
    with pytest.raises(ValueError, match=f"6 heads of queries cannot share {heads} of keys and {of_value} of values"):
        block_sparse_attention(**_arguments(query=query, key=key, value=value, indices=None, counts=None))


def test_parts_merge_by_their_lse() -> None:
    """The identity of the docstring: blocks 0 and 2 apart from block 1."""
    counts = torch.tensor([[[2, 2, 2]]], dtype=torch.int32)
    apart = torch.tensor([[[[0, 2]] * 3]], dtype=torch.int32)
    o1, l1 = block_sparse_attention(**_arguments(indices=apart, counts=counts))
    o2, l2 = block_sparse_attention(**_arguments(indices=apart * 0 + 1, counts=counts // 2))
    whole, lse = block_sparse_attention(**_arguments(indices=None, counts=None))
    torch.testing.assert_close(torch.logaddexp(l1, l2), lse)
    torch.testing.assert_close((l1 - lse).exp()[..., None] * o1 + (l2 - lse).exp()[..., None] * o2, whole)


def test_says_what_is_wrong_with_lists() -> None:
    with pytest.raises(ValueError, match="both indices and counts"):
        visible_keys(torch.zeros(1, 1, 3, 1), None, None, (QUERIES, KEYS), (BLOCK, BLOCK))
    with pytest.raises(ValueError, match="names a block of keys twice"):
        block_sparse_attention(**_arguments(counts=torch.tensor(COUNTS, dtype=torch.int32) * 0 + 3))


def test_is_an_operation() -> None:
    arguments = _arguments(modes=torch.tensor([1, 0], dtype=torch.int32), key_bias=torch.zeros(1, 1, KEYS))
    torch.library.opcheck(block_sparse_attention, (), arguments, test_utils=("test_schema", "test_faketensor"))
