"""The kernels against the reference, emulated and on a GPU: codes and scales bit for bit, results within the manifest's tolerances."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from dexport.plugins.lowrank_linear.launcher import Request, request
from dexport.plugins.lowrank_linear.packing import packed_codes
from dexport.plugins.lowrank_linear.reference import activation_codes, lowrank_linear_reference
from tests.plugins.cuda_kernels import PLUGINS, KernelLibrary, compiled, emulated

FOLDER = PLUGINS / "lowrank_linear"
MANIFEST = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))
LAUNCHER = MANIFEST["launcher"]
ROWS, OUTPUTS = 133, 136
"""Ragged in tiles of 128, and in eight rows of scales."""
GUARD = 4096


@pytest.fixture(scope="module", params=["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def kernel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> KernelLibrary:
    build = emulated if request.param == "emulated" else compiled
    return build(FOLDER / MANIFEST["kernel"], tmp_path_factory.mktemp("lowrank"))


def _case(
    dtype: torch.dtype = torch.float16,
    number: str = "int4",
    block: int = 64,
    weight_block: int = 64,
    rows: int = 20,
    inputs: int = 128,
    outputs: int = 40,
    rank: int = 32,
    **changes: Any,
) -> dict[str, Any]:
    """Arguments of the operation, with results about 1."""
    random = torch.Generator().manual_seed(inputs)
    groups = inputs // 64 if weight_block else 1
    codes = torch.randint(-8, 8, (outputs, inputs), generator=random, dtype=torch.int8)
    plain = {
        "x": torch.randn(rows, inputs, generator=random).to(dtype),
        "weight": packed_codes(codes),
        "weight_scale": (0.005 + 0.02 * torch.rand(groups, outputs, generator=random)).to(dtype),
        "down": (torch.randn(rank, inputs, generator=random) * inputs**-0.5).to(dtype),
        "up": (torch.randn(outputs, rank, generator=random) * max(rank, 1) ** -0.5).to(dtype),
        "bias": torch.randn(outputs, generator=random).to(dtype),
        "gate": None,
        "residual": None,
        "activation_scale": None,
        "activation_format": number,
        "activation_block": block,
        "gelu": False,
    }
    return plain | changes


def _guarded(tensor: torch.Tensor, filling: float) -> torch.Tensor:
    """A copy with numbers of `filling` on both sides: what is read there spoils the result, what is written there shows."""
    around = torch.full((tensor.numel() + 2 * GUARD,), filling, dtype=tensor.dtype)
    around[GUARD:-GUARD] = tensor.flatten()
    return around


def _inside(around: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    return around[GUARD:-GUARD].view(shape)


def _workspace(kernel: KernelLibrary, asked: Request) -> torch.Tensor:
    size = torch.zeros(1, dtype=torch.int64)
    assert kernel.call(f"{LAUNCHER}_workspace", asked, size) == 0
    return torch.full((int(size) + 2 * GUARD,), 7, dtype=torch.uint8, device=kernel.device)


def _run(kernel: KernelLibrary, case: dict[str, Any], product: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """The result, and the workspace."""
    given = dict(case)
    for name, tensor in case.items():
        if isinstance(tensor, torch.Tensor) and tensor.numel():
            filling = 255 if tensor.dtype is torch.uint8 else torch.nan
            given[name] = _inside(_guarded(tensor, filling).to(kernel.device), tensor.shape)
    shape = torch.Size((*case["x"].shape[:-1], case["weight"].shape[0]))
    out = _guarded(torch.full(shape, 7.0, dtype=case["x"].dtype), 7).to(kernel.device)
    asked = request(**given, y=_inside(out, shape), product=product)
    workspace = _workspace(kernel, asked)
    asked.workspace = workspace[GUARD:].data_ptr()
    kernel.run(LAUNCHER, asked, None)
    for around in (out, workspace):
        assert (around[:GUARD] == 7).all() and (around[-GUARD:] == 7).all(), "written outside"
    return _inside(out, shape).cpu(), workspace[GUARD:-GUARD].cpu()


def _codes(case: dict[str, Any], workspace: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes [rows, G, I/G] and scales [rows, G, 1] that the first kernel left behind, as the reference has them."""
    dtype, (rows, inputs) = case["x"].dtype, case["x"].flatten(0, -2).shape
    groups = inputs // 64 if case["activation_block"] else 1
    if case["activation_format"] == "int4":
        codes = torch.stack([workspace[: rows * inputs // 2] & 15, workspace[: rows * inputs // 2] >> 4], -1).to(torch.int8)
        codes = torch.where(codes > 7, codes - 16, codes)
    else:  # even ones come first
        codes = workspace[: rows * inputs].view(torch.int8).reshape(-1, 2, 32).transpose(1, 2)
    size, pitch = rows * inputs // (1 if case["activation_format"] == "int8" else 2), (rows + 7) // 8 * 8
    scales = workspace[(size + 255) // 256 * 256 :][: 2 * groups * pitch].view(dtype).reshape(groups, pitch)[:, :rows]
    return codes.reshape(rows, groups, -1), scales.t()[..., None]


def _check(kernel: KernelLibrary, case: dict[str, Any], product: int = 0) -> torch.Tensor:
    found, workspace = _run(kernel, case, product)
    wanted = activation_codes(case["x"].flatten(0, -2), case["activation_scale"], case["activation_format"], case["activation_block"])
    codes, scales = _codes(case, workspace)
    assert torch.equal(codes.to(found.dtype), wanted[0]) and torch.equal(scales, wanted[1].expand_as(scales))
    tolerance = MANIFEST["tolerances"][str(found.dtype).removeprefix("torch.")]["y"]
    torch.testing.assert_close(found, lowrank_linear_reference(**case), rtol=tolerance["relative"], atol=tolerance["absolute"])
    return found


@pytest.mark.parametrize(("number", "product"), [("int4", 0), ("int4", 1), ("int8", 0)])
@pytest.mark.parametrize("weight_block", [0, 64])
@pytest.mark.parametrize("block", MANIFEST["activation_blocks"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_form_of_the_kernels(
    kernel: KernelLibrary, dtype: torch.dtype, block: int, weight_block: int, number: str, product: int
) -> None:
    """Ragged rows and outputs, and more steps than stages."""
    case = _case(dtype, number, block, weight_block, rows=ROWS, inputs=320, outputs=OUTPUTS)
    assert _check(kernel, case, product).abs().amax() > 0.5


def test_both_products_are_the_same(kernel: KernelLibrary) -> None:
    for weight_block in (0, 64):
        case = _case(block=weight_block, weight_block=weight_block)
        assert torch.equal(_run(kernel, case, 0)[0], _run(kernel, case, 1)[0])


def _gate(batch: int, rows: int, dtype: torch.dtype) -> dict[str, Any]:
    random = torch.Generator().manual_seed(9)
    x, residual = (torch.randn(batch, rows, n, generator=random).to(dtype) for n in (128, 40))
    return {"x": x, "gate": torch.randn(batch, 1, 40, generator=random).to(dtype), "residual": residual}


SMALL: dict[str, dict[str, Any]] = {
    "no bias": {"bias": None},
    "gelu": {"gelu": True},
    "gelu of large numbers": {"gelu": True, "bias": torch.linspace(-200, 200, 40).half()},
    "a gate": _gate(1, 20, torch.float16),
    "gates of a batch": _gate(3, 7, torch.float16),
    "gelu and gates": {"dtype": torch.bfloat16, "gelu": True} | _gate(2, 9, torch.bfloat16),
    "one row": {"rows": 1},
    "whole tiles": {"rows": 128, "inputs": 64, "outputs": 128},
    "one group": {"inputs": 64, "outputs": 8},
    "no branch": {"rank": 0},
    "smallest branch": {"rank": 16},
    "a branch that is no multiple of 32": {"rank": 48},
    "largest branch": {"rank": 128},
    "one scale of a table": {"block": 0, "activation_scale": torch.tensor([0.3]).half()},
    "one scale of a table, eight bits": {"number": "int8", "block": 0, "activation_scale": torch.tensor([0.01]).half()},
    "a row of a table": {"activation_scale": torch.tensor([0.3, 0.05]).half()},
    "a row of a table, eight bits": {"number": "int8", "dtype": torch.bfloat16, "activation_scale": torch.tensor([0.03, 0.01]).bfloat16()},
}


@pytest.mark.parametrize("name", SMALL)
def test_special_cases(kernel: KernelLibrary, name: str) -> None:
    _check(kernel, _case(**SMALL[name]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("number", "block"), [("int4", 64), ("int8", 0)])
def test_rows_without_a_range_of_their_own(kernel: KernelLibrary, dtype: torch.dtype, number: str, block: int) -> None:
    """Zeros, numbers whose scale has to be the smallest one there is, ties, and the largest numbers."""
    x = torch.zeros(6, 128)
    x[1], x[2] = 1e-7, torch.linspace(-1e-9, 1e-9, 128)
    x[3] = torch.arange(128) % 15 - 7.5
    x[4, ::2] = torch.finfo(dtype).max / 2**8
    x[5] = torch.finfo(dtype).smallest_normal
    _check(kernel, _case(dtype, number, block, x=x.to(dtype), rank=0))


def test_integers_are_summed_exactly(kernel: KernelLibrary) -> None:
    """The largest codes everywhere: nothing overflows on the way, and the result is a number of float16."""
    for number, product, largest in (("int4", 0, 8), ("int4", 1, 8), ("int8", 0, 128)):
        for block in (0, 64):
            scale = torch.full((10 if block else 1,), 0.125).half()
            case = _case(number=number, block=block, weight_block=block, inputs=640, rank=0, rows=3, bias=None, activation_scale=scale)
            case["x"] = torch.full_like(case["x"], -60000.0)
            case["weight"] = torch.full_like(case["weight"], 0x88)
            case["weight_scale"] = torch.full_like(case["weight_scale"], 2.0**-6)
            found, _ = _run(kernel, case, product)
            assert torch.equal(found, torch.full_like(found, 640 * largest * 8 / 512))


def test_the_residual_may_be_the_result(kernel: KernelLibrary) -> None:
    case = _case(**_gate(2, 10, torch.float16))
    given = {name: t.to(kernel.device) if isinstance(t, torch.Tensor) else t for name, t in case.items()}
    y = given["residual"].clone()
    asked = request(**given | {"residual": y}, y=y)
    workspace = _workspace(kernel, asked)
    asked.workspace = workspace.data_ptr()
    kernel.run(LAUNCHER, asked, None)
    assert torch.equal(y.cpu(), _run(kernel, case)[0])


@pytest.mark.parametrize(("number", "block", "product"), [("int4", 64, 0), ("int4", 0, 1), ("int8", 0, 0)])
def test_order_of_threads_changes_nothing(kernel: KernelLibrary, number: str, block: int, product: int) -> None:
    """A missing barrier or wait would show: the emulation lets another warp run ahead with every seed."""
    case = _case(number=number, block=block, weight_block=block, inputs=320, rows=40)
    kernel.seed(0)
    wanted = _run(kernel, case, product)
    for seed in (1, 2):
        kernel.seed(seed)
        found = _run(kernel, case, product)
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
    asked, size = _asked(_case()), torch.zeros(1, dtype=torch.int64)
    for field, value in changes.items():
        setattr(asked, field, value)
    assert kernel.call(LAUNCHER, asked, None) == code
    assert kernel.call(f"{LAUNCHER}_workspace", asked, size) == (code if -6 < code < -1 else 0)


def test_nothing_to_do_is_no_error(kernel: KernelLibrary) -> None:
    asked = _asked(_case())
    asked.rows = 0
    assert kernel.call(LAUNCHER, asked, None) == 0
    assert kernel.call(LAUNCHER, None, None) == -1
    assert kernel.call(f"{LAUNCHER}_workspace", asked, None) == -1


def test_the_binding_refuses_tensors_that_the_kernel_cannot_read() -> None:
    case = _case()
    with pytest.raises(ValueError, match=r"down has to be contiguous and torch\.float16, not torch\.float16 with strides"):
        _asked(case | {"down": case["down"].t().contiguous().t()})
    with pytest.raises(ValueError, match=r"weight has to be contiguous and torch\.uint8"):
        _asked(case | {"weight": case["weight"].to(torch.int8)})
    with pytest.raises(ValueError, match=r"x has to be float16 or bfloat16, not torch\.float32"):
        floats = {n: t.float() if isinstance(t, torch.Tensor) and t.is_floating_point() else t for n, t in case.items()}
        request(**floats, y=torch.empty(20, 40))
