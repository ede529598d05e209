"""The kernel against the reference, emulated and on a GPU, within the manifest's tolerances; and what the launcher refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dexport.plugins.block_sparse_attention.launcher import request
from tests.plugins.block_sparse_attention.cases import FOLDER, KEYS, LAUNCHER, MANIFEST, QUERIES, SMALL, attend, case_of, check, lists
from tests.plugins.cuda_kernels import KernelLibrary, compiled, emulated


@pytest.fixture(scope="module", params=["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def kernel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> KernelLibrary:
    build = emulated if request.param == "emulated" else compiled
    return build(FOLDER / MANIFEST["kernel"], tmp_path_factory.mktemp("attention"))


@pytest.mark.parametrize("query_block", [64, 128])
@pytest.mark.parametrize("size", MANIFEST["head_sizes"])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_form_of_the_kernel(kernel: KernelLibrary, dtype: torch.dtype, biased: bool, size: int, query_block: int) -> None:
    """Ragged queries and keys, lists in any order, a block of queries that sees nothing, biases of which one hides its key."""
    bias = torch.linspace(-2, 2, KEYS).reshape(1, 1, KEYS) if biased else None
    if bias is not None:
        bias[..., 5] = -torch.inf
    given = lists((2, 0), (), (1,)) if query_block == 64 else lists((2, 0), ())
    found = check(kernel, case_of(dtype, size, **given, key_bias=bias, query_block=query_block))
    empty = slice(64, 128) if query_block == 64 else slice(128, QUERIES)
    assert not found[:, :, empty].any() and found.abs().amax() > 0.1


@pytest.mark.parametrize("name", SMALL)
def test_special_cases(kernel: KernelLibrary, name: str) -> None:
    check(kernel, case_of(**SMALL[name]))


def test_no_keys_at_all(kernel: KernelLibrary) -> None:
    nothing = torch.zeros(1, 1, 0, 64, dtype=torch.float16)
    out, lse = attend(kernel, case_of(queries=20, key=nothing, value=nothing))
    assert lse is not None and not out.any() and lse.isneginf().all()


@pytest.mark.parametrize("own", [(2, 3), (2, 1), (1, 3)])
def test_lists_and_biases_broadcast(kernel: KernelLibrary, own: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, 3, n, 64, generator=generator).half() for n in (20, 130, 130))
    order = torch.rand(*own, 1, 3, generator=generator).argsort(-1).to(torch.int32)
    counts = torch.randint(0, 4, (*own, 1), generator=generator, dtype=torch.int32)
    bias = torch.randn(own[0], own[1], 130, generator=generator)
    check(kernel, case_of() | {"query": q, "key": k, "value": v, "indices": order, "counts": counts, "key_bias": bias})


@pytest.mark.parametrize(("key_heads", "query_block"), [(1, 64), (2, 128)])
def test_heads_share_keys_in_groups(kernel: KernelLibrary, key_heads: int, query_block: int) -> None:
    """Whichever form of the kernel the blocks of queries would take alone."""
    generator = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(2, heads, n, 64, generator=generator).half() for heads, n in ((4, 20), (key_heads, 130), (key_heads, 130)))
    order = torch.rand(1, 4, 1, 3, generator=generator).argsort(-1).to(torch.int32)
    counts = torch.tensor([[[2], [1], [3], [2]]], dtype=torch.int32)
    check(kernel, case_of() | {"query": q, "key": k, "value": v, "indices": order, "counts": counts, "query_block": query_block})


def test_lse_is_optional(kernel: KernelLibrary) -> None:
    case = case_of(queries=20)
    assert torch.equal(attend(kernel, case, with_lse=False)[0], attend(kernel, case)[0])


def test_order_of_threads_changes_nothing(kernel: KernelLibrary) -> None:
    """A missing barrier or wait would show: the emulation lets another warp run ahead with every seed."""
    case = case_of(size=72, dtype=torch.bfloat16, **lists((2, 0, 1), (1, 0), (0,)))
    kernel.seed(0)
    wanted = attend(kernel, case)[0]
    for seed in (1, 2, 3):
        kernel.seed(seed)
        assert torch.equal(attend(kernel, case)[0], wanted)


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
    "lists whose tiles cannot be counted": (-5, {"counts": 1 << 20, "indices": 1 << 20, "list_length": 1 << 30, "key_block": 128}),
    "lists": (-6, {"counts": 1 << 20, "indices": 1 << 20, "list_heads": 2}),
    "more heads of keys than of queries": (-6, {"key_heads": 2}),
    "no heads of keys": (-6, {"key_heads": 0}),
    "biases": (-6, {"key_bias": 1 << 20, "bias_batch": 3}),
}


@pytest.mark.parametrize("name", WRONG)
def test_refuses(kernel: KernelLibrary, name: str) -> None:
    """Addresses here are never read: nothing is started."""
    code, changes = WRONG[name]
    case = case_of(queries=20)
    asked = request(**case, out=torch.empty_like(case["query"]), lse=None)
    for field, value in changes.items():
        setattr(asked, field, value)
    assert kernel.call(LAUNCHER, asked, None) == code


def test_nothing_to_do_is_no_error(kernel: KernelLibrary) -> None:
    case = case_of(queries=20)
    asked = request(**case, out=torch.empty_like(case["query"]), lse=None)
    asked.query_tokens = 0
    assert kernel.call(LAUNCHER, asked, None) == 0
    assert kernel.call(LAUNCHER, None, None) == -1


def test_the_binding_refuses_tensors_that_the_kernel_cannot_read() -> None:
    case = case_of(queries=20)
    with pytest.raises(ValueError, match=r"key has to be contiguous and torch\.float16, not torch\.float16 with strides"):
        request(**case | {"key": case["key"].transpose(2, 3)}, out=case["query"], lse=None)
    with pytest.raises(ValueError, match=r"query has to be float16 or bfloat16, not torch\.float32"):
        request(**{n: t.float() if n in ("query", "key", "value") else t for n, t in case.items()}, out=case["query"].float(), lse=None)
