"""`lowrank_linear` against `quantized_linear` with two linears beside it, and as an operation of PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from dexport.passes.quantization.recipe import WeightSpec
from dexport.passes.quantization.weights import quantize_weight
from dexport.plugins.lowrank_linear.packing import packed_codes, packed_scales
from dexport.plugins.lowrank_linear.reference import activation_codes, lowrank_linear, lowrank_linear_reference
from dexport.plugins.quantized_linear.reference import quantized_linear_reference

TOKENS, INPUTS, OUTPUTS, RANK = 5, 128, 24, 16


def _random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _scale(kind: str) -> torch.Tensor | None:
    return {"dynamic": None, "one": torch.tensor([0.4]), "groups": torch.tensor([0.4, 0.25])}[kind]


def _arguments(
    dtype: torch.dtype, number: str, block: int, granularity: str, scale: str = "dynamic"
) -> tuple[dict[str, Any], tuple[torch.Tensor, torch.Tensor]]:
    """Of the operation without its epilogue, and codes and scales as `quantized_linear` has them."""
    found = quantize_weight(_random(OUTPUTS, INPUTS, seed=1) / 12, WeightSpec(format="int4", granularity=granularity))
    scales, step = found.scale.to(dtype), _scale(scale)
    arguments = {
        "x": _random(2, TOKENS, INPUTS, seed=0).to(dtype),
        "weight": packed_codes(found.codes),
        "weight_scale": packed_scales(scales),
        "down": (_random(RANK, INPUTS, seed=2) / 12).to(dtype),
        "up": (_random(OUTPUTS, RANK, seed=3) / 4).to(dtype),
        "bias": _random(OUTPUTS, seed=4).to(dtype),
        "gate": None,
        "residual": None,
        "activation_scale": None if step is None else step.to(dtype),
        "activation_format": number,
        "activation_block": block,
        "gelu": False,
    }
    return arguments, (found.codes, scales)


def _composed(a: dict[str, Any], codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The same of operations that know nothing of it."""
    x, scale = a["x"], a["activation_scale"]
    if scale is not None and len(scale) > 1:
        scale = scale.repeat_interleave(INPUTS // len(scale))
    mode, block = ("dynamic", a["activation_block"]) if scale is None else ("table", 0)
    main = quantized_linear_reference(x, codes, scales, None, a["bias"], scale, None, "int4", a["activation_format"], mode, block, "")
    return main + functional.linear(functional.linear(x, a["down"]), a["up"])


@pytest.mark.parametrize("granularity", ["channel", "block-64"])
@pytest.mark.parametrize("scale", ["dynamic", "one", "groups"])
@pytest.mark.parametrize("number", ["int4", "int8"])
def test_is_a_quantized_linear_and_two_linears(number: str, scale: str, granularity: str) -> None:
    for block in (0, 64) if scale == "dynamic" else (0,) if scale == "one" else (64,):
        arguments, weight = _arguments(torch.float64, number, block, granularity, scale)
        torch.testing.assert_close(lowrank_linear(**arguments), _composed(arguments, *weight))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("number", "block"), [("int4", 64), ("int8", 0)])
def test_sixteen_bits(dtype: torch.dtype, number: str, block: int) -> None:
    """Codes are those of 16 bits; what follows is more exact than a composition in 16 bits."""
    arguments, weight = _arguments(dtype, number, block, "block-64")
    found = lowrank_linear(**arguments)
    assert found.dtype is dtype
    codes, scale = activation_codes(arguments["x"], None, number, block)
    rounded = (codes.double() * scale.double()).flatten(-2)
    wide = {name: t.double() if isinstance(t, torch.Tensor) and t.is_floating_point() else t for name, t in arguments.items()}
    branch = functional.linear(functional.linear(wide["x"], wide["down"]), wide["up"])
    exact = quantized_linear_reference(rounded, weight[0], weight[1].double(), None, wide["bias"], None, None, "int4", "", "none", 0, "")
    exact = exact + branch
    error = [float((y.double() - exact).norm() / exact.norm()) for y in (found, _composed(arguments, *weight))]
    assert error[0] < torch.finfo(dtype).eps and error[0] < error[1]


def test_codes_round_to_even_and_saturate() -> None:
    x = torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5, 7.4, 7.6, 900.0, -8.4, -9.0, -900.0] + [0.0] * 53])
    codes, _ = activation_codes(x, torch.tensor([1.0]), "int4", 0)
    assert codes[0, 0, :11].tolist() == [0, 2, 2, 0, -2, 7, 7, 7, -8, -8, -8]


def test_epilogues() -> None:
    arguments, _ = _arguments(torch.float32, "int8", 0, "channel")
    z = lowrank_linear_reference(**arguments)
    gate, residual = _random(2, 1, OUTPUTS, seed=5), _random(2, TOKENS, OUTPUTS, seed=6)
    activated = functional.gelu(z, approximate="tanh")
    torch.testing.assert_close(lowrank_linear(**arguments | {"gelu": True}), activated)
    torch.testing.assert_close(lowrank_linear(**arguments | {"gate": gate, "residual": residual}), residual + gate * z)
    both = lowrank_linear(**arguments | {"gate": gate[0, 0], "residual": residual, "gelu": True})
    torch.testing.assert_close(both, residual + gate[0, 0] * activated)
    torch.testing.assert_close(lowrank_linear(**arguments | {"bias": None}), z - arguments["bias"])


def test_without_a_branch() -> None:
    arguments, _ = _arguments(torch.float32, "int4", 64, "channel")
    without = lowrank_linear(**arguments | {"down": torch.zeros(0, INPUTS), "up": torch.zeros(OUTPUTS, 0)})
    branch = functional.linear(functional.linear(arguments["x"], arguments["down"]), arguments["up"])
    torch.testing.assert_close(lowrank_linear(**arguments), without + branch)


def test_is_an_operation() -> None:
    arguments, _ = _arguments(torch.float16, "int4", 64, "block-64")
    torch.library.opcheck(lowrank_linear, (), arguments, test_utils=("test_schema", "test_faketensor"))
