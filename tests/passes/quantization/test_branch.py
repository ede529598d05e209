"""The low-rank branch of a site: what is kept, and that branch and residual are the weight."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from dexport.passes.quantization.branch import Branched, branched
from dexport.passes.quantization.parts import RealWeight
from dexport.passes.quantization.recipe import ActivationSpec, LowRankSpec, WeightSpec
from dexport.passes.quantization.scratch import Scratch
from dexport.passes.quantization.simulate import simulated_activations, simulated_weight
from tests.passes.quantization.layers import seen_of

W4, A4 = WeightSpec(format="int4"), ActivationSpec(format="int4", mode="dynamic")
GENERATOR = torch.Generator().manual_seed(0)
WEIGHT = torch.randn(24, 32, generator=GENERATOR)
SEEN = seen_of(torch.randn(2, 40, 32, generator=GENERATOR) * torch.linspace(0.2, 3, 32))


def _branched(folder: Path, rows: bool, dtype: torch.dtype = torch.float32, iterations: int = 10) -> Branched:
    weight, seen = RealWeight(lambda: WEIGHT, (24, 32), "w"), SEEN if rows else None
    return branched(weight, LowRankSpec(rank=4, iterations=iterations), W4, A4, seen, Scratch(folder), dtype)


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize(("dtype", "held"), [(torch.float32, torch.float16), (torch.bfloat16, torch.bfloat16)])
def test_branch_and_residual_are_the_weight(rows: bool, dtype: torch.dtype, held: torch.dtype, tmp_path: Path) -> None:
    found = _branched(tmp_path, rows, dtype)
    down, up = found.down.load(), found.up.load()
    assert down.shape == found.down.shape == (4, 32) and up.shape == found.up.shape == (24, 4)
    assert down.dtype is up.dtype is found.down.dtype is found.up.dtype is held
    assert torch.allclose(up.float() @ down.float() + found.residual, WEIGHT, atol=1e-5)


def _error(found: Branched) -> float:
    """Of the output over the rows that were seen."""
    rows = SEEN.rows
    side = functional.linear(functional.linear(rows, found.down.load().float()), found.up.load().float())
    output = functional.linear(simulated_activations(rows, A4), simulated_weight(found.residual, W4)) + side
    return float((output - functional.linear(rows, WEIGHT)).square().mean())


def test_rows_make_it_fit_the_output(tmp_path: Path) -> None:
    plain = functional.linear(simulated_activations(SEEN.rows, A4), simulated_weight(WEIGHT, W4))
    without = float((plain - functional.linear(SEEN.rows, WEIGHT)).square().mean())
    blind, seeing, once = (
        _error(_branched(tmp_path, False)),
        _error(_branched(tmp_path, True)),
        _error(_branched(tmp_path, True, iterations=1)),
    )
    assert seeing < without and seeing <= once and seeing <= blind
