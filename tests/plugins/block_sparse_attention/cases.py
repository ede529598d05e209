"""Cases of block-sparse attention, and how a library of its kernel is compared with the reference."""

from __future__ import annotations

import json
from typing import Any

import torch

from dexport.plugins.block_sparse_attention.launcher import request
from dexport.plugins.block_sparse_attention.reference import block_sparse_attention_reference
from tests.plugins.cuda_kernels import PLUGINS, KernelLibrary

FOLDER = PLUGINS / "block_sparse_attention"
MANIFEST = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))
LAUNCHER = MANIFEST["launcher"]
QUERIES, KEYS = 150, 140
"""Ragged in blocks of 64 and of 128: 3 or 2 blocks of each."""


def lists(*lists: tuple[int, ...], length: int = 3) -> dict[str, Any]:
    """Lists of one head; what is beyond the count is no block, and the kernel must not mind."""
    rows = [[*given, *[10**6] * (length - len(given))] for given in lists]
    counts = [len(given) for given in lists]
    return {"indices": torch.tensor([[rows]], dtype=torch.int32), "counts": torch.tensor([[counts]], dtype=torch.int32)}


def case_of(dtype: torch.dtype = torch.float16, size: int = 64, queries: int = QUERIES, heads: int = 1, **changes: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(size)
    q, k, v = (torch.randn(1, heads, n, size, generator=generator).to(dtype) for n in (queries, KEYS, KEYS))
    plain = {"query": q, "key": k, "value": v, "indices": None, "counts": None, "modes": None, "key_bias": None}
    return plain | {"factor": 1.5 * size**-0.5, "query_block": 64, "key_block": 64} | changes


def _guarded(tensor: torch.Tensor, filling: float) -> torch.Tensor:
    """A copy with 4096 numbers of `filling` on both sides of it: what is read there spoils the result, what is written there shows."""
    around = torch.full((tensor.numel() + 8192,), filling, dtype=tensor.dtype)
    around[4096:-4096] = tensor.flatten()
    return around


def _inside(around: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    return around[4096:-4096].view(shape)


def attend(
    kernel: KernelLibrary, case: dict[str, Any], with_lse: bool = True, launcher: str = LAUNCHER
) -> tuple[torch.Tensor, torch.Tensor | None]:
    query = case["query"]
    given = dict(case)
    for name in ("query", "key", "value", "key_bias"):
        if case[name] is not None:
            given[name] = _inside(_guarded(case[name], torch.nan).to(kernel.device), case[name].shape)
    for name in ("indices", "counts", "modes"):
        given[name] = None if case[name] is None else case[name].to(kernel.device)
    out = _guarded(torch.zeros_like(query) + 7, 7).to(kernel.device)
    lse = _guarded(torch.zeros(query.shape[:-1]) + 7, 7).to(kernel.device)
    asked = request(**given, out=_inside(out, query.shape), lse=_inside(lse, query.shape[:-1]) if with_lse else None)
    kernel.run(launcher, asked, None)
    for around in (out, lse):
        assert (around[:4096] == 7).all() and (around[-4096:] == 7).all(), "written outside of the result"
    return _inside(out, query.shape).cpu(), _inside(lse, query.shape[:-1]).cpu() if with_lse else None


def check(kernel: KernelLibrary, case: dict[str, Any], launcher: str = LAUNCHER) -> torch.Tensor:
    """Compares with the reference and returns the kernel's result."""
    found, wanted = attend(kernel, case, launcher=launcher), block_sparse_attention_reference(**case)
    tolerances = MANIFEST["tolerances"][str(case["query"].dtype).removeprefix("torch.")]
    for name, a, b in zip(("out", "lse"), found, wanted):
        assert a is not None
        torch.testing.assert_close(a, b, rtol=tolerances[name]["relative"], atol=tolerances[name]["absolute"])
    return found[0]


SMALL: dict[str, dict[str, Any]] = {
    "no lists": {},
    "one query": {"queries": 1},
    "whole blocks of queries": {"queries": 128},
    "blocks of 128 keys, the last one ragged": lists((1,), (0, 1), (0,)) | {"key_block": 128},
    "blocks of 192 queries": lists((2, 1)) | {"query_block": 192},
    "ids that are no blocks": lists((-1, 1), (3, 2), (2**31 - 1, -(2**31), 0)),
    "a count that is too large": lists((2, 0, 1), (1, 2, 0), (0, 1, 2)) | {"counts": torch.full((1, 1, 3), 99, dtype=torch.int32)},
    "a count below 0": lists((2,), (1,), (0,)) | {"counts": torch.tensor([[[1, -5, 1]]], dtype=torch.int32)},
    "every key is hidden": {"queries": 20, "key_bias": torch.full((1, 1, KEYS), -torch.inf)},
    "large scores": {"queries": 20, "factor": 30.0},
    "negative factor": {"queries": 20, "factor": -0.3},
    "modes of heads": lists((2,)) | {"queries": 20, "heads": 3, "modes": torch.tensor([1, 0, 2], dtype=torch.int32)},
}
