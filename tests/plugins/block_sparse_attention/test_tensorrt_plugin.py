"""The TensorRT plugin, compiled against TensorRT's headers and used as TensorRT would, with the emulated kernel under it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from tests.plugins.block_sparse_attention.cases import FOLDER, MANIFEST, SMALL, attend, case_of, check, lists
from tests.plugins.cuda_kernels import KernelLibrary, emulated, tensorrt_headers

DRIVER = "attend_by_plugin"


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> KernelLibrary:
    sources = (FOLDER / MANIFEST["tensorrt"], Path(__file__).parent / "tensorrt_driver.cpp")
    return emulated(FOLDER / MANIFEST["kernel"], tmp_path_factory.mktemp("plugin"), *sources, *tensorrt_headers(), "-I", FOLDER)


@pytest.mark.parametrize("name", ["no lists", "blocks of 128 keys, the last one ragged", "modes of heads", "every key is hidden"])
def test_computes_what_the_kernel_computes(plugin: KernelLibrary, name: str) -> None:
    check(plugin, case_of(**SMALL[name]), DRIVER)


def test_all_inputs_at_once_and_no_lse(plugin: KernelLibrary) -> None:
    bias = torch.linspace(-1, 1, 140).reshape(1, 1, 140)
    case = case_of(torch.bfloat16, 72, 20, **lists((2, 0)), modes=torch.tensor([1], dtype=torch.int32), key_bias=bias)
    found = check(plugin, case, DRIVER)
    assert torch.equal(attend(plugin, case, with_lse=False, launcher=DRIVER)[0], found)


def test_heads_share_keys_in_groups(plugin: KernelLibrary) -> None:
    query = torch.randn(1, 3, 20, 64, generator=torch.Generator().manual_seed(3)).half()
    check(plugin, case_of() | {"query": query}, DRIVER)


def test_refuses_nodes_with_wrong_attributes(plugin: KernelLibrary) -> None:
    assert not plugin.call("refuses", 0.5, 128, 1, None)
    for wrong in ((0.5, 100, 1, None), (0.5, 128, 2, None), (0.5, 128, 1, "block"), (0.0, 128, 1, None), (math.inf, 128, 1, None)):
        assert plugin.call("refuses", *wrong)
