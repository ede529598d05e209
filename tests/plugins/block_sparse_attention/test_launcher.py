"""The kernel against the reference, emulated and on a GPU, within the manifest's tolerances; and what the launcher refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from dexport.plugins.block_sparse_attention.launcher import request
from dexport.plugins.block_sparse_attention.reference import block_sparse_attention_reference
from tests.plugins.cuda_kernels import PLUGINS, KernelLibrary, compiled, emulated

FOLDER = PLUGINS / "block_sparse_attention"
MANIFEST = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))
LAUNCHER = MANIFEST["launcher"]
QUERIES, KEYS = 150, 140
"""Ragged in blocks of 64 and of 128: 3 or 2 blocks of each."""


@pytest.fixture(scope="module", params=["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def kernel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> KernelLibrary:
    build = emulated if request.param == "emulated" else compiled
    return build(FOLDER / MANIFEST["kernel"], tmp_path_factory.mktemp("attention"))


def _lists(*lists: tuple[int, ...], length: int = 3) -> dict[str, torch.Tensor]:
    """Lists of one head; what is beyond the count is no block, and the kernel must not mind."""
    rows = [[*given, *[10**6] * (length - len(given))] for given in lists]
    counts = [len(given) for given in lists]
    return {"indices": torch.tensor([[rows]], dtype=torch.int32), "counts": torch.tensor([[counts]], dtype=torch.int32)}


def _case(dtype: torch.dtype = torch.float16, size: int = 64, queries: int = QUERIES, heads: int = 1, **changes: Any) -> dict[str, Any]:
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


def _attend(kernel: KernelLibrary, case: dict[str, Any], with_lse: bool = True) -> tuple[torch.Tensor, torch.Tensor | None]:
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
    kernel.run(LAUNCHER, asked, None)
    for around in (out, lse):
        assert (around[:4096] == 7).all() and (around[-4096:] == 7).all(), "written outside of the result"
    return _inside(out, query.shape).cpu(), _inside(lse, query.shape[:-1]).cpu() if with_lse else None


def _check(kernel: KernelLibrary, case: dict[str, Any]) -> torch.Tensor:
    """Compares with the reference and returns the kernel's result."""
    found, wanted = _attend(kernel, case), block_sparse_attention_reference(**case)
    tolerances = MANIFEST["tolerances"][str(case["query"].dtype).removeprefix("torch.")]
    for name, a, b in zip(("out", "lse"), found, wanted):
        assert a is not None
        torch.testing.assert_close(a, b, rtol=tolerances[name]["relative"], atol=tolerances[name]["absolute"])
    return found[0]


@pytest.mark.parametrize("query_block", [64, 128])
@pytest.mark.parametrize("size", MANIFEST["head_sizes"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_form_of_the_kernel(kernel: KernelLibrary, dtype: torch.dtype, size: int, query_block: int) -> None:
    """Ragged queries and keys, lists in any order, a block of queries that sees nothing, biases of which one hides its key."""
    bias = torch.linspace(-2, 2, KEYS).reshape(1, 1, KEYS)
    bias[..., 5] = -torch.inf
    lists = _lists((2, 0), (), (1,)) if query_block == 64 else _lists((2, 0), ())
    found = _check(kernel, _case(dtype, size, **lists, key_bias=bias, query_block=query_block))
    empty = slice(64, 128) if query_block == 64 else slice(128, QUERIES)
    assert not found[:, :, empty].any() and found.abs().amax() > 0.1


SMALL: dict[str, dict[str, Any]] = {
    "no lists": {},
    "one query": {"queries": 1},
    "whole blocks of queries": {"queries": 128},
    "blocks of 128 keys, the last one ragged": _lists((1,), (0, 1), (0,)) | {"key_block": 128},
    "blocks of 192 queries": _lists((2, 1)) | {"query_block": 192},
    "ids that are no blocks": _lists((-1, 1), (3, 2), (2**31 - 1, -(2**31), 0)),
    "a count that is too large": _lists((2, 0, 1), (1, 2, 0), (0, 1, 2)) | {"counts": torch.full((1, 1, 3), 99, dtype=torch.int32)},
    "a count below 0": _lists((2,), (1,), (0,)) | {"counts": torch.tensor([[[1, -5, 1]]], dtype=torch.int32)},
    "every key is hidden": {"queries": 20, "key_bias": torch.full((1, 1, KEYS), -torch.inf)},
    "large scores": {"queries": 20, "factor": 30.0},
    "negative factor": {"queries": 20, "factor": -0.3},
    "modes of heads": _lists((2,)) | {"queries": 20, "heads": 3, "modes": torch.tensor([1, 0, 2], dtype=torch.int32)},
}


@pytest.mark.parametrize("name", SMALL)
def test_special_cases(kernel: KernelLibrary, name: str) -> None:
    _check(kernel, _case(**SMALL[name]))


def test_no_keys_at_all(kernel: KernelLibrary) -> None:
    nothing = torch.zeros(1, 1, 0, 64, dtype=torch.float16)
    out, lse = _attend(kernel, _case(queries=20, key=nothing, value=nothing))
    assert lse is not None and not out.any() and lse.isneginf().all()


@pytest.mark.parametrize("own", [(2, 3), (2, 1), (1, 3)])
def test_lists_and_biases_broadcast(kernel: KernelLibrary, own: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, 3, n, 64, generator=generator).half() for n in (20, 130, 130))
    order = torch.rand(*own, 1, 3, generator=generator).argsort(-1).to(torch.int32)
    counts = torch.randint(0, 4, (*own, 1), generator=generator, dtype=torch.int32)
    bias = torch.randn(own[0], own[1], 130, generator=generator)
    _check(kernel, _case() | {"query": q, "key": k, "value": v, "indices": order, "counts": counts, "key_bias": bias})


def test_lse_is_optional(kernel: KernelLibrary) -> None:
    case = _case(queries=20)
    assert torch.equal(_attend(kernel, case, with_lse=False)[0], _attend(kernel, case)[0])


def test_order_of_threads_changes_nothing(kernel: KernelLibrary) -> None:
    """A missing barrier or wait would show: the emulation lets another warp run ahead with every seed."""
    case = _case(size=72, dtype=torch.bfloat16, **_lists((2, 0, 1), (1, 0), (0,)))
    kernel.seed(0)
    wanted = _attend(kernel, case)[0]
    for seed in (1, 2, 3):
        kernel.seed(seed)
        assert torch.equal(_attend(kernel, case)[0], wanted)


WRONG: dict[str, tuple[int, dict[str, Any]]] = {
    "no query": (-1, {"query": None}),
    "counts without indices": (-1, {"counts": 1 << 20}),
    "an address that is not aligned": (-1, {"out": 8}),
    "head size": (-2, {"head_size": 80}),
    "type": (-3, {"type": 2}),
    "query block": (-4, {"query_block": 32}),
    "key block": (-4, {"key_block": 0}),
    "negative size": (-5, {"key_tokens": -1}),
    "heads": (-5, {"heads": 70000}),
    "lists": (-6, {"counts": 1 << 20, "indices": 1 << 20, "list_heads": 2}),
    "biases": (-6, {"key_bias": 1 << 20, "bias_batch": 3}),
}


@pytest.mark.parametrize("name", WRONG)
def test_refuses(kernel: KernelLibrary, name: str) -> None:
    """Addresses here are never read: nothing is started."""
    code, changes = WRONG[name]
    case = _case(queries=20)
    asked = request(**case, out=torch.empty_like(case["query"]), lse=None)
    for field, value in changes.items():
        setattr(asked, field, value)
    assert kernel.call(LAUNCHER, asked, None) == code


def test_nothing_to_do_is_no_error(kernel: KernelLibrary) -> None:
    case = _case(queries=20)
    asked = request(**case, out=torch.empty_like(case["query"]), lse=None)
    asked.query_tokens = 0
    assert kernel.call(LAUNCHER, asked, None) == 0
    assert kernel.call(LAUNCHER, None, None) == -1


def test_the_binding_refuses_tensors_that_the_kernel_cannot_read() -> None:
    case = _case(queries=20)
    with pytest.raises(ValueError, match=r"key has to be contiguous and torch\.float16, not torch\.float16 with strides"):
        request(**case | {"key": case["key"].transpose(2, 3)}, out=case["query"], lse=None)
    with pytest.raises(ValueError, match=r"query has to be float16 or bfloat16, not torch\.float32"):
        request(**{n: t.float() if n in ("query", "key", "value") else t for n, t in case.items()}, out=case["query"].float(), lse=None)
