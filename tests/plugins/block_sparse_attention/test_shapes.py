"""Tensors of other shapes never reach the kernel, nor does the meaning broadcast them into something else."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from dexport.plugins.block_sparse_attention.launcher import request
from dexport.plugins.block_sparse_attention.reference import block_sparse_attention
from dexport.plugins.block_sparse_attention.shapes import check_shapes

BATCH, HEADS, QUERIES, KEYS, SIZE = 2, 4, 70, 130, 64


def _case(**changes: Any) -> dict[str, Any]:
    shapes = {
        "query": (BATCH, HEADS, QUERIES, SIZE),
        "key": (BATCH, 2, KEYS, SIZE),
        "value": (BATCH, 2, KEYS, SIZE),
        "indices": (BATCH, 1, 2, 3),
        "counts": (BATCH, 1, 2),
        "modes": (HEADS,),
        "key_bias": (1, HEADS, KEYS),
    }
    given = shapes | changes
    tensors = {name: None if shape is None else torch.zeros(shape, dtype=torch.int32) for name, shape in given.items()}
    halves = {name: tensors[name].half() for name in ("query", "key", "value")}
    return tensors | halves | {"key_bias": None if given["key_bias"] is None else torch.zeros(given["key_bias"])}


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "axes": ({"value": (2, KEYS, SIZE)}, "query, key and value have 4 axes, not 4, 4 and 3"),
    "key of another batch": ({"key": (1, 2, KEYS, SIZE)}, "key has to be [2, 2, 130, 64], not [1, 2, 130, 64]"),
    "key of another size": ({"key": (BATCH, 2, KEYS, 32)}, "key has to be [2, 2, 130, 64], not [2, 2, 130, 32]"),
    "value of other keys": ({"value": (BATCH, 2, 128, SIZE)}, "value has to be [2, 2, 130, 64], not [2, 2, 128, 64]"),
    "heads": ({"key": (BATCH, 3, KEYS, SIZE)}, "4 heads of queries cannot share 3 of keys and 2 of values"),
    "no heads": (
        {"key": (BATCH, 0, KEYS, SIZE), "value": (BATCH, 0, KEYS, SIZE)},
        "4 heads of queries cannot share 0 of keys and 0 of values",
    ),
    "half of lists": ({"counts": None}, "lists of blocks need both indices and counts"),
    "lists of too few blocks": (
        {"indices": (BATCH, 1, 1, 3)},
        "indices has to be [2, 4, 2, 3] or [2, 1, 2, 3] or [1, 4, 2, 3] or [1, 1, 2, 3], not [2, 1, 1, 3]",
    ),
    "counts of other lists": ({"counts": (1, 1, 2)}, "counts has to be [2, 1, 2], not [1, 1, 2]"),
    "modes of the keys' heads": ({"modes": (2,)}, "modes has to be [4], not [2]"),
    "bias of blocks": (
        {"key_bias": (1, 1, 3)},
        "key_bias has to be [2, 4, 130] or [2, 1, 130] or [1, 4, 130] or [1, 1, 130], not [1, 1, 3]",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_shapes_are_refused(name: str) -> None:
    """By the check, and by all that would go on with them: the operation and the binding of the kernel."""
    changes, message = WRONG[name]
    case = _case(**changes)
    rest = {"factor": 0.5, "query_block": 64, "key_block": 64}
    out = torch.zeros(BATCH, HEADS, QUERIES, SIZE, dtype=torch.float16)
    refusals = (
        lambda: check_shapes(**case, query_block=64),
        lambda: block_sparse_attention(**case, **rest),
        lambda: request(**case, **rest, out=out, lse=None),
    )
    for refuse in refusals:
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            refuse()


@pytest.mark.parametrize(
    "changes", [{}, {"indices": None, "counts": None, "modes": None, "key_bias": None}, {"key_bias": (BATCH, 1, KEYS)}]
)
def test_all_shapes_of_the_docstring_pass(changes: dict[str, Any]) -> None:
    check_shapes(**_case(**changes), query_block=64)
    check_shapes(**_case(**changes | {"key": (BATCH, HEADS, KEYS, SIZE), "value": (BATCH, HEADS, KEYS, SIZE)}), query_block=64)


def test_results_of_the_kernel_have_their_shapes_too() -> None:
    case = _case() | {"factor": 0.5, "query_block": 64, "key_block": 64}
    with pytest.raises(ValueError, match=re.escape("out has to be [2, 4, 70, 64], not [8, 70, 64]")):
        request(**case, out=torch.zeros(8, QUERIES, SIZE, dtype=torch.float16), lse=None)
    with pytest.raises(ValueError, match=re.escape("lse has to be [2, 4, 70], not [2, 4, 64]")):
        request(**case, out=case["query"], lse=torch.zeros(BATCH, HEADS, 64))
