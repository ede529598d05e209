"""Cases of `lowrank_linear`, and how a library of its kernels is compared with the reference."""

from __future__ import annotations

import json
from typing import Any

import torch

from dexport.plugins.lowrank_linear.launcher import Request, request
from dexport.plugins.lowrank_linear.packing import packed_codes
from dexport.plugins.lowrank_linear.reference import activation_codes, lowrank_linear_reference
from tests.plugins.cuda_kernels import PLUGINS, KernelLibrary

FOLDER = PLUGINS / "lowrank_linear"
MANIFEST = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))
LAUNCHER = MANIFEST["launcher"]
GUARD = 4096


def case_of(
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


def workspace_of(kernel: KernelLibrary, asked: Request) -> torch.Tensor:
    size = torch.zeros(1, dtype=torch.int64)
    assert kernel.call(f"{LAUNCHER}_workspace", asked, size) == 0
    return torch.full((int(size) + 2 * GUARD,), 7, dtype=torch.uint8, device=kernel.device)


def run(kernel: KernelLibrary, case: dict[str, Any], product: int = 0, launcher: str = LAUNCHER) -> tuple[torch.Tensor, torch.Tensor]:
    """The result, and the workspace."""
    given = dict(case)
    for name, tensor in case.items():
        if isinstance(tensor, torch.Tensor) and tensor.numel():
            filling = 255 if tensor.dtype is torch.uint8 else torch.nan
            given[name] = _inside(_guarded(tensor, filling).to(kernel.device), tensor.shape)
    shape = torch.Size((*case["x"].shape[:-1], case["weight"].shape[0]))
    out = _guarded(torch.full(shape, 7.0, dtype=case["x"].dtype), 7).to(kernel.device)
    asked = request(**given, y=_inside(out, shape), product=product)
    workspace = workspace_of(kernel, asked)
    asked.workspace = workspace[GUARD:].data_ptr()
    kernel.run(launcher, asked, None)
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


def check(kernel: KernelLibrary, case: dict[str, Any], product: int = 0, launcher: str = LAUNCHER) -> torch.Tensor:
    """Compares with the reference and returns the kernels' result."""
    found, workspace = run(kernel, case, product, launcher)
    wanted = activation_codes(case["x"].flatten(0, -2), case["activation_scale"], case["activation_format"], case["activation_block"])
    codes, scales = _codes(case, workspace)
    assert torch.equal(codes.to(found.dtype), wanted[0]) and torch.equal(scales, wanted[1].expand_as(scales))
    tolerance = MANIFEST["tolerances"][str(found.dtype).removeprefix("torch.")]["y"]
    torch.testing.assert_close(found, lowrank_linear_reference(**case), rtol=tolerance["relative"], atol=tolerance["absolute"])
    return found


def gate(batch: int, rows: int, dtype: torch.dtype) -> dict[str, Any]:
    random = torch.Generator().manual_seed(9)
    x, residual = (torch.randn(batch, rows, n, generator=random).to(dtype) for n in (128, 40))
    return {"x": x, "gate": torch.randn(batch, 1, 40, generator=random).to(dtype), "residual": residual}


SMALL: dict[str, dict[str, Any]] = {
    "no bias": {"bias": None},
    "gelu": {"gelu": True},
    "gelu of large numbers": {"gelu": True, "bias": torch.linspace(-200, 200, 40).half()},
    "a gate": gate(1, 20, torch.float16),
    "gates of a batch": gate(3, 7, torch.float16),
    "gelu and gates": {"dtype": torch.bfloat16, "gelu": True} | gate(2, 9, torch.bfloat16),
    "one row": {"rows": 1},
    "whole tiles": {"rows": 128, "inputs": 64, "outputs": 128},
    "one group": {"inputs": 64, "outputs": 8},
    "no branch": {"rank": 0},
    "smallest branch": {"rank": 16},
    "a branch that is no multiple of 32": {"rank": 48},
    "largest branch": {"rank": 128},
    "largest branch, a scale for each token": {"rank": 128, "block": 0, "inputs": 320},
    "one scale of a table": {"block": 0, "activation_scale": torch.tensor([0.3]).half()},
    "one scale of a table, eight bits": {"number": "int8", "block": 0, "activation_scale": torch.tensor([0.01]).half()},
    "a row of a table": {"activation_scale": torch.tensor([0.3, 0.05]).half()},
    "a row of a table, eight bits": {"number": "int8", "dtype": torch.bfloat16, "activation_scale": torch.tensor([0.03, 0.01]).bfloat16()},
}
