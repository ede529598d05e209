"""The TensorRT plugin, compiled against TensorRT's headers and used as TensorRT would, with the emulated kernels under it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.plugins.cuda_kernels import KernelLibrary, emulated, tensorrt_headers
from tests.plugins.lowrank_linear.cases import FOLDER, MANIFEST, SMALL, case_of, check, gate

DRIVER = "multiply_by_plugin"


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> KernelLibrary:
    sources = (FOLDER / MANIFEST["tensorrt"], Path(__file__).parent / "tensorrt_driver.cpp")
    return emulated(FOLDER / MANIFEST["kernel"], tmp_path_factory.mktemp("plugin"), *sources, *tensorrt_headers(), "-I", FOLDER)


@pytest.mark.parametrize("name", ["no bias", "a gate", "gelu and gates", "one group", "no branch", "a row of a table, eight bits"])
def test_computes_what_the_kernels_compute(plugin: KernelLibrary, name: str) -> None:
    """The workspace that TensorRT would give has the size that the launcher asks for: what is written beside it fails."""
    check(plugin, case_of(**SMALL[name]), launcher=DRIVER)


def test_all_inputs_at_once(plugin: KernelLibrary) -> None:
    case = case_of(number="int8", block=0, weight_block=0, gelu=True, activation_scale=torch.tensor([0.02]).half())
    check(plugin, case | gate(2, 9, torch.float16), launcher=DRIVER)


@pytest.mark.parametrize(
    ("name", "value"),
    [("activation_bits", 6), ("activation_block", 32), ("gelu", 2), ("branch", -1), ("bias", 2), ("gate", 2), ("scale", 2), ("other", 0)],
)
def test_refuses_nodes_with_wrong_attributes(plugin: KernelLibrary, name: str, value: int) -> None:
    assert not plugin.call("refuses", "gelu", 1)
    assert plugin.call("refuses", name, value)
