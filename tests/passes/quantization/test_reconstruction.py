"""Reconstruction: better than nearest rounding, decided, repeatable, and never worse than where it started."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import pytest
import torch
from torch.nn import functional

from dexport.passes.quantization.gptq import gptq
from dexport.passes.quantization.recipe import ReconstructionSpec, WeightSpec
from dexport.passes.quantization.reconstruction import (
    Fit,
    Outputs,
    Reconstructed,
    Trial,
    reconstruct,
    reconstruct_linear,
)
from dexport.passes.quantization.weights import dequantize, weight_grid
from dexport.plugins.formats import fake_quantize, format_of

SPEC = ReconstructionSpec(iterations=150, learning_rate=0.05)
INT4 = format_of("int4")


def _rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _alike(count: int, inputs: int) -> torch.Tensor:
    return _rows(count, 8) @ _rows(8, inputs, seed=1) + 0.3 * _rows(count, inputs, seed=2)


def _seed(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("name", "scale_aware"), [("int4", False), ("e2m1", True), ("nvfp4", True)])
def test_a_linear_gets_better_codes(name: str, scale_aware: bool) -> None:
    weight, rows = _rows(16, 32, seed=3), _alike(256, 32)
    grid = weight_grid(weight, WeightSpec(format=name))
    found = reconstruct_linear(weight, grid, rows, dataclasses.replace(SPEC, scale_aware=scale_aware), _seed())
    real = dequantize(found.weights["weight"])
    exact = rows @ weight.T
    assert found.improved and found.after < 0.6 * found.before
    assert found.before == pytest.approx(float((rows @ grid.round(weight).T - exact).square().mean()), rel=1e-3)
    assert found.after == pytest.approx(float((rows @ real.T - exact).square().mean()), rel=1e-3)
    assert torch.allclose(grid.round(real), real, atol=1e-6)


def test_is_in_the_class_of_gptq() -> None:
    weight, rows = _rows(16, 32, seed=3), _alike(256, 32)
    grid = weight_grid(weight, WeightSpec(format="int4"))
    other = dequantize(gptq(weight, rows, grid))
    found = reconstruct_linear(weight, grid, rows, SPEC, _seed())
    assert found.after < 1.3 * float((rows @ (other - weight).T).square().mean())


def test_the_same_seed_gives_the_same_codes() -> None:
    weight, rows = _rows(8, 16, seed=3), _alike(64, 16)
    grid = weight_grid(weight, WeightSpec(format="int4"))
    spec = dataclasses.replace(SPEC, iterations=20, drop=0.5)
    codes = [reconstruct_linear(weight, grid, rows, spec, _seed(s), _int4_rows).weights["weight"].codes for s in (0, 0, 1)]
    assert torch.equal(codes[0], codes[1]) and not torch.equal(codes[0], codes[2])


def _int4_rows(x: torch.Tensor) -> torch.Tensor:
    return fake_quantize(x, x.abs().amax() / 7, INT4)


def test_falls_back_to_the_start() -> None:
    """A learning rate that throws weights about: the start is returned, and said to be."""
    weight, rows = _rows(8, 16, seed=3), _rows(64, 16)
    grid = weight_grid(weight, WeightSpec(format="int8"))
    found = reconstruct_linear(weight, grid, rows, dataclasses.replace(SPEC, iterations=10, learning_rate=50.0), _seed())
    assert not found.improved and found.after == found.before
    assert torch.equal(dequantize(found.weights["weight"]), grid.round(weight))


def test_what_is_exact_stays() -> None:
    weight = torch.tensor([[1.0, -7, 3], [7, 2, 0]])
    found = reconstruct_linear(weight, weight_grid(weight, WeightSpec(format="int4")), _rows(9, 3), SPEC, _seed())
    assert found.before == found.after == 0 and not found.improved


class Block:
    """Two linears with a GELU between them, whose activations are rounded with scales of their own."""

    def __init__(self) -> None:
        self.weights = {"first": _rows(24, 16, seed=4) / 4, "second": _rows(16, 24, seed=5) / 5}
        self.x = _alike(256, 16).reshape(64, 4, 16)

    def __call__(self, inputs: Mapping[str, torch.Tensor], trial: Trial) -> Outputs:
        x = inputs["x"]
        hidden = functional.linear(self._rounded(x, "first", trial), trial.weights["first"])
        output = functional.linear(self._rounded(functional.gelu(hidden), "second", trial), trial.weights["second"])
        return Outputs(x + output, {"first": hidden, "second": output})

    @staticmethod
    def _rounded(x: torch.Tensor, name: str, trial: Trial) -> torch.Tensor:
        return trial.mixed(x, fake_quantize(x, trial.scales[name], INT4)) if name in trial.scales else x

    def fit(self, spec: ReconstructionSpec, scale: float = 0.0, seed: int = 0) -> Reconstructed:
        """Scales of 0: activations stay real."""
        with torch.no_grad():
            targets = self({"x": self.x}, Trial(self.weights, {}, lambda exact, rounded: rounded))
        scales = {name: torch.tensor(scale) for name in self.weights} if scale else {}
        weights = {name: (w, weight_grid(w, WeightSpec(format="int4"))) for name, w in self.weights.items()}
        return reconstruct(Fit(self, weights, {"x": self.x}, targets, scales, scale_rate=1e-2), spec, _seed(seed))


def test_a_block_is_fitted_as_one() -> None:
    found = Block().fit(SPEC)
    assert found.improved and found.after < 0.6 * found.before and set(found.weights) == {"first", "second"}


def test_inner_layers_count() -> None:
    """With a large weight on inner outputs, the first layer alone comes nearer to what it was."""
    block = Block()

    def error(found: Reconstructed) -> float:
        return float(functional.linear(block.x, dequantize(found.weights["first"]) - block.weights["first"]).square().mean())

    assert error(block.fit(dataclasses.replace(SPEC, inner=100.0))) < error(block.fit(SPEC))


def test_scales_are_learned_if_asked() -> None:
    wide = 2.5  # clips nothing and rounds coarsely
    fixed = Block().fit(SPEC, wide)
    learned = Block().fit(dataclasses.replace(SPEC, activations=True), wide)
    assert fixed.scales["first"] == wide and 0 < learned.scales["second"] < 0.9 * wide
    assert learned.after < 0.8 * fixed.after


def test_dropping_keeps_the_measure() -> None:
    """QDrop changes what is fitted, not what is measured before and after."""
    plain, dropped = Block().fit(SPEC, 1.0), Block().fit(dataclasses.replace(SPEC, drop=0.5), 1.0)
    assert plain.before == dropped.before and dropped.improved and dropped.after != plain.after


def test_rounding_is_decided_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    from dexport.passes.quantization import adaround

    kept: list[torch.Tensor] = []
    hard = adaround.SoftRounding.hard

    def spy(self: adaround.SoftRounding, v: torch.Tensor) -> object:
        kept.append(self.up(v))
        return hard(self, v)

    monkeypatch.setattr(adaround.SoftRounding, "hard", spy)
    Block().fit(dataclasses.replace(SPEC, iterations=300))
    undecided = torch.cat([((h > 0.01) & (h < 0.99)).flatten() for h in kept])
    assert undecided.float().mean() < 0.01


def test_says_what_is_wrong() -> None:
    weight = _rows(4, 8)
    grid = weight_grid(weight, WeightSpec(format="int4"))
    with pytest.raises(ValueError, match="at least one"):
        reconstruct_linear(weight, grid, torch.zeros(0, 8), SPEC, _seed())
    with pytest.raises(ValueError, match="nothing to fit"):
        reconstruct(Fit(Block(), {}, {"x": weight}, Outputs(weight)), SPEC, _seed())
