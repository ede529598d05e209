"""The kernels against the reference, emulated and on a GPU: codes and scales bit for bit, results within the manifest's tolerances."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dexport.plugins.lowrank_linear.launcher import Request, request
from tests.plugins.cuda_kernels import KernelLibrary, compiled, emulated
from tests.plugins.lowrank_linear.cases import FOLDER, LAUNCHER, MANIFEST, SMALL, case_of, check, gate, run, workspace_of

ROWS, OUTPUTS = 133, 136
"""Ragged in tiles of 128, and in eight rows of scales."""


@pytest.fixture(scope="module", params=["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def kernel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> KernelLibrary:
    build = emulated if request.param == "emulated" else compiled
    return build(FOLDER / MANIFEST["kernel"], tmp_path_factory.mktemp("lowrank"))


@pytest.mark.parametrize(("number", "product"), [("int4", 0), ("int4", 1), ("int8", 0)])
@pytest.mark.parametrize("weight_block", [0, 64])
@pytest.mark.parametrize("block", MANIFEST["activation_blocks"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_form_of_the_kernels(
    kernel: KernelLibrary, dtype: torch.dtype, block: int, weight_block: int, number: str, product: int
) -> None:
    """Ragged rows and outputs, and more steps than stages."""
    case = case_of(dtype, number, block, weight_block, rows=ROWS, inputs=320, outputs=OUTPUTS)
    assert check(kernel, case, product).abs().amax() > 0.5


def test_both_products_are_the_same(kernel: KernelLibrary) -> None:
    for weight_block in (0, 64):
        case = case_of(block=weight_block, weight_block=weight_block)
        assert torch.equal(run(kernel, case, 0)[0], run(kernel, case, 1)[0])


@pytest.mark.parametrize("name", SMALL)
def test_special_cases(kernel: KernelLibrary, name: str) -> None:
    check(kernel, case_of(**SMALL[name]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("number", "block"), [("int4", 64), ("int8", 0)])
def test_rows_without_a_range_of_their_own(kernel: KernelLibrary, dtype: torch.dtype, number: str, block: int) -> None:
    """Zeros, numbers whose scale has to be the smallest one there is, ties, and the largest numbers."""
    x = torch.zeros(6, 128)
    x[1], x[2] = 1e-7, torch.linspace(-1e-9, 1e-9, 128)
    x[3] = torch.arange(128) % 15 - 7.5
    x[4, ::2] = torch.finfo(dtype).max / 2**8
    x[5] = torch.finfo(dtype).smallest_normal
    check(kernel, case_of(dtype, number, block, x=x.to(dtype), rank=0))


def test_integers_are_summed_exactly(kernel: KernelLibrary) -> None:
    """The largest codes everywhere: nothing overflows on the way, and the result is a number of float16."""
    for number, product, largest in (("int4", 0, 8), ("int4", 1, 8), ("int8", 0, 128)):
        for block in (0, 64):
            scale = torch.full((10 if block else 1,), 0.125).half()
            case = case_of(number=number, block=block, weight_block=block, inputs=640, rank=0, rows=3, bias=None, activation_scale=scale)
            case["x"] = torch.full_like(case["x"], -60000.0)
            case["weight"] = torch.full_like(case["weight"], 0x88)
            case["weight_scale"] = torch.full_like(case["weight_scale"], 2.0**-6)
            found, _ = run(kernel, case, product)
            assert torch.equal(found, torch.full_like(found, 640 * largest * 8 / 512))


def test_the_residual_may_be_the_result(kernel: KernelLibrary) -> None:
    case = case_of(**gate(2, 10, torch.float16))
    given = {name: t.to(kernel.device) if isinstance(t, torch.Tensor) else t for name, t in case.items()}
    y = given["residual"].clone()
    asked = request(**given | {"residual": y}, y=y)
    workspace = workspace_of(kernel, asked)
    asked.workspace = workspace.data_ptr()
    kernel.run(LAUNCHER, asked, None)
    assert torch.equal(y.cpu(), run(kernel, case)[0])


@pytest.mark.parametrize(("number", "block", "product"), [("int4", 64, 0), ("int4", 0, 1), ("int8", 0, 0)])
def test_order_of_threads_changes_nothing(kernel: KernelLibrary, number: str, block: int, product: int) -> None:
    """A missing barrier or wait would show: the emulation lets another warp run ahead with every seed."""
    case = case_of(number=number, block=block, weight_block=block, inputs=320, rows=40)
    kernel.seed(0)
    wanted = run(kernel, case, product)
    for seed in (1, 2):
        kernel.seed(seed)
        found = run(kernel, case, product)
        assert torch.equal(found[0], wanted[0]) and torch.equal(found[1], wanted[1])


WRONG: dict[str, tuple[int, dict[str, Any]]] = {
    "no x": (-1, {"x": None}),
    "no workspace": (-1, {"workspace": None}),
    "an address that is not aligned": (-1, {"bias": 8}),
    "half a branch": (-1, {"up": None}),
    "a gate without a residual": (-1, {"gate": 1 << 20}),
    "a residual without a gate": (-1, {"residual": 1 << 20}),
    "inputs": (-2, {"inputs": 96}),
    "outputs": (-2, {"outputs": 36}),
    "rank": (-2, {"rank": 8}),
    "a rank too large": (-2, {"rank": 144}),
    "type": (-3, {"type": 2}),
    "bits": (-3, {"activation_bits": 6}),
    "block of activations": (-4, {"activation_block": 32}),
    "scales of weights": (-4, {"weight_scales": 3}),
    "no scales of weights": (-4, {"weight_scales": 0}),
    "more scales than groups": (-4, {"activation_scale": 1 << 20, "activation_scales": 3}),
    "one scale for groups": (-4, {"activation_scale": 1 << 20, "activation_scales": 1}),
    "scales for groups, but one for tokens": (-4, {"activation_scale": 1 << 20, "activation_scales": 2, "activation_block": 0}),
    "scales without their number": (-1, {"activation_scale": 1 << 20}),
    "a number of scales without scales": (-1, {"activation_scales": 2}),
    "negative rows": (-5, {"rows": -1}),
    "inputs whose sum would overflow": (-5, {"inputs": 1 << 17}),
    "rows of a gate": (-6, {"gate": 1 << 20, "residual": 1 << 20, "rows_of_gate": 3}),
}


def _asked(case: dict[str, Any]) -> Request:
    asked = request(**case, y=torch.empty(20, 40, dtype=torch.float16))
    asked.workspace = 1 << 20
    return asked


@pytest.mark.parametrize("name", WRONG)
def test_refuses(kernel: KernelLibrary, name: str) -> None:
    """Addresses here are never read: nothing is started."""
    code, changes = WRONG[name]
    asked, size = _asked(case_of()), torch.zeros(1, dtype=torch.int64)
    for field, value in changes.items():
        setattr(asked, field, value)
    assert kernel.call(LAUNCHER, asked, None) == code
    assert kernel.call(f"{LAUNCHER}_workspace", asked, size) == (code if -6 < code < -1 else 0)


def test_nothing_to_do_is_no_error(kernel: KernelLibrary) -> None:
    asked = _asked(case_of())
    asked.rows = 0
    assert kernel.call(LAUNCHER, asked, None) == 0
    assert kernel.call(LAUNCHER, None, None) == -1
    assert kernel.call(f"{LAUNCHER}_workspace", asked, None) == -1


def test_the_binding_refuses_tensors_that_the_kernel_cannot_read() -> None:
    case = case_of()
    with pytest.raises(ValueError, match=r"down has to be contiguous and torch\.float16, not torch\.float16 with strides"):
        _asked(case | {"down": case["down"].t().contiguous().t()})
    with pytest.raises(ValueError, match=r"weight has to be contiguous and torch\.uint8"):
        _asked(case | {"weight": case["weight"].to(torch.int8)})
    with pytest.raises(ValueError, match=r"x has to be float16 or bfloat16, not torch\.float32"):
        floats = {n: t.float() if isinstance(t, torch.Tensor) and t.is_floating_point() else t for n, t in case.items()}
        request(**floats, y=torch.empty(20, 40))
