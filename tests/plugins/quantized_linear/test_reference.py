"""`quantized_linear` against loops in double precision, and as an operation of PyTorch."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from dexport.passes.quantization.recipe import WeightSpec
from dexport.passes.quantization.weights import quantize_weight
from dexport.plugins.formats import format_of
from dexport.plugins.quantized_linear.reference import dequantized, quantized_linear, quantized_linear_reference

INPUTS, OUTPUTS, TOKENS = 32, 6, 5
WEIGHTS = {
    "tensor": WeightSpec(format="int8", granularity="tensor"),
    "channel": WeightSpec(format="int4"),
    "block": WeightSpec(format="int4", granularity="block-8"),
    "float": WeightSpec(format="e4m3", granularity="tensor"),
    "nvfp4": WeightSpec(format="nvfp4"),
    "mxfp4": WeightSpec(format="mxfp4"),
}
ACTIVATIONS: dict[str, dict[str, Any]] = {
    "none": {"mode": "none", "format": ""},
    "static": {"mode": "static", "scale": torch.tensor(0.02)},
    "static tokens": {"mode": "static", "scale": torch.linspace(0.01, 0.03, TOKENS)[:, None]},
    "static centred": {"mode": "static", "scale": torch.tensor(0.02), "centre": torch.tensor(0.7)},
    "static centred channels": {"mode": "static", "scale": torch.tensor(0.02), "centre": torch.linspace(-1, 1, INPUTS)},
    "table": {"mode": "table", "scale": torch.tensor([[0.02]]), "centre": torch.linspace(-1, 1, INPUTS)[None]},
    "table tokens": {"mode": "table", "scale": torch.linspace(0.01, 0.03, TOKENS)[:, None], "format": "int6"},
    "dynamic": {"mode": "dynamic"},
    "dynamic float": {"mode": "dynamic", "format": "e3m4"},
    "dynamic block": {"mode": "dynamic", "block": 8},
    "dynamic centred": {"mode": "dynamic-centred", "format": "int4"},
    "nvfp4": {"mode": "dynamic", "format": "e2m1", "block": 16, "micro": "nvfp4", "scale": torch.tensor(0.001)},
    "mxfp4": {"mode": "dynamic", "format": "e2m1", "block": 16, "micro": "mxfp4"},
}


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _arguments(weights: str, activations: str, dtype: torch.dtype = torch.float32) -> list[Any]:
    found = quantize_weight(_random(OUTPUTS, INPUTS, seed=1), WEIGHTS[weights])
    a: dict[str, Any] = {"format": "int8", "block": 0, "micro": "", "scale": None, "centre": None} | ACTIVATIONS[activations]
    scale, centre = (t if t is None else t.to(dtype) for t in (a["scale"], a["centre"]))
    held = found.scale if found.scale.dtype.itemsize == 1 else found.scale.to(dtype)
    x, bias = _random(2, TOKENS, INPUTS).to(dtype), _random(OUTPUTS, seed=2).to(dtype)
    return [x, found.codes, held, found.coarse, bias, scale, centre, found.format, a["format"], a["mode"], a["block"], a["micro"]]


def _slow(arguments: list[Any]) -> torch.Tensor:
    """The definition in the module's docstring, number by number in double precision."""
    x, codes, scale, coarse, bias, given, centre, weight_format, name, mode, block, micro = arguments
    numbers = format_of(weight_format).decode(codes, torch.float64)
    scales = scale.double().expand(OUTPUTS, -1)
    width = INPUTS // scales.shape[1]
    weight = torch.zeros(OUTPUTS, INPUTS, dtype=torch.float64)
    for o, i in itertools.product(range(OUTPUTS), range(INPUTS)):
        weight[o, i] = numbers[o, i] * scales[o, i // width] * (1 if coarse is None else coarse.double())
    result = torch.zeros(*x.shape[:-1], OUTPUTS, dtype=torch.float64)
    for b, n in itertools.product(range(x.shape[0]), range(x.shape[1])):
        row = x[b, n].double()
        middle = torch.zeros(INPUTS, dtype=torch.float64)
        if mode == "dynamic-centred":
            middle = middle + (row.min() + row.max()) / 2
        elif centre is not None:
            middle = middle + centre.double().flatten()
        rounded = row if mode == "none" else _rounded_row(row - middle, n, given, name, block, micro) + middle
        result[b, n] = weight @ rounded + bias.double()
    return result


def _rounded_row(row: torch.Tensor, token: int, given: torch.Tensor | None, name: str, block: int, micro: str) -> torch.Tensor:
    number, size = format_of(name), block or INPUTS
    pieces = []
    for piece in row.split(size):
        absmax = float(piece.abs().max())
        if micro == "nvfp4":
            assert given is not None
            scale = float(torch.tensor(absmax / 6 / float(given)).to(torch.float8_e4m3fn).double()) * float(given)
        elif micro == "mxfp4":
            scale = next(2.0**k for k in range(-60, 60) if 2.0 ** (k + 3) > absmax)
        elif given is not None:
            scale = float(given.flatten()[token] if given.numel() > 1 else given)
        else:
            scale = absmax / number.largest
        pieces.append(number.round(piece / scale) * scale)
    return torch.cat(pieces)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("activations", ACTIVATIONS)
def test_means_what_it_says(weights: str, activations: str) -> None:
    arguments = _arguments(weights, activations)
    found = quantized_linear(*arguments)
    assert torch.allclose(found.double(), _slow(arguments), rtol=1e-5, atol=1e-5)
    assert torch.equal(found, quantized_linear_reference(*arguments))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("weights", "activations"), [("tensor", "static"), ("block", "dynamic block"), ("nvfp4", "nvfp4"), ("mxfp4", "mxfp4")]
)
def test_sixteen_bits(dtype: torch.dtype, weights: str, activations: str) -> None:
    """Close to double precision where roundings of the 16-bit quotient x / scale may fall on the other side."""
    arguments = _arguments(weights, activations, dtype)
    found = quantized_linear(*arguments)
    assert found.dtype is dtype
    exact = _slow(arguments)
    assert float((found.double() - exact).norm() / exact.norm()) < (0.01 if dtype is torch.float16 else 0.04)


@pytest.mark.parametrize("shape", [(3, INPUTS), (2, 2, TOKENS, INPUTS), (INPUTS,)])
def test_any_leading_axes(shape: tuple[int, ...]) -> None:
    arguments = _arguments("channel", "dynamic")
    x = _random(*shape)
    found = quantized_linear(x, *arguments[1:])
    flat = quantized_linear(x.reshape(1, -1, INPUTS), *arguments[1:])
    assert found.shape == (*shape[:-1], OUTPUTS) and torch.allclose(found, flat.reshape(found.shape), atol=1e-6)


def test_a_centre_costs_no_accuracy_where_the_grid_holds_the_input() -> None:
    """x = centre + scale * integer: nothing is lost, whatever the centre."""
    integers = torch.randint(-127, 128, (2, TOKENS, INPUTS), generator=torch.Generator().manual_seed(0))
    arguments = _arguments("tensor", "static centred channels")
    centre = torch.randint(-8, 8, (INPUTS,), generator=torch.Generator().manual_seed(1)) / 4
    arguments[0], arguments[5], arguments[6] = integers / 64 + centre, torch.tensor(1 / 64), centre
    real = dequantized(arguments[1], arguments[2], None, "int8")
    exact = torch.nn.functional.linear(arguments[0].double(), real.double(), arguments[4].double())
    assert torch.allclose(quantized_linear(*arguments).double(), exact, rtol=1e-6, atol=1e-5)
    arguments[6] = None
    assert not torch.allclose(quantized_linear(*arguments).double(), exact, atol=1e-2)  # without it the ends are cut off


def test_no_bias() -> None:
    arguments = _arguments("channel", "static")
    with_bias, bias = quantized_linear(*arguments), arguments[4]
    arguments[4] = None
    assert torch.allclose(quantized_linear(*arguments) + bias, with_bias, atol=1e-6)


@pytest.mark.parametrize("activations", ["static", "static centred channels", "dynamic", "dynamic centred", "nvfp4"])
@pytest.mark.parametrize("weights", ["channel", "block"])
def test_gradients_are_those_of_the_reference(weights: str, activations: str) -> None:
    def gradients(operation: Any) -> list[torch.Tensor | None]:
        arguments = _arguments(weights, activations, torch.float64 if activations != "nvfp4" else torch.float32)
        leaves = [arguments[k].requires_grad_() for k in (0, 2, 4, 5, 6) if arguments[k] is not None]
        operation(*arguments).square().sum().backward()
        return [leaf.grad for leaf in leaves]

    for own, other in zip(gradients(quantized_linear), gradients(quantized_linear_reference), strict=True):
        assert (own is None) == (other is None)
        assert own is None or other is None or (torch.allclose(own, other) and bool(own.any()))


def test_the_gradient_of_the_input_is_that_of_the_layer_inside_the_range() -> None:
    arguments = _arguments("channel", "static")
    x = arguments[0].requires_grad_()
    quantized_linear(*arguments).sum().backward()
    inside = x.detach().abs() <= 127 * 0.02
    column = dequantized(arguments[1], arguments[2], None, "int4").sum(0)
    assert 0 < int(inside.sum()) < inside.numel()
    assert torch.allclose(x.grad, torch.where(inside, column, 0.0), atol=1e-6)


@pytest.mark.parametrize(("weights", "activations"), [("channel", "static"), ("block", "dynamic block"), ("tensor", "dynamic centred")])
def test_is_a_proper_operation(weights: str, activations: str) -> None:
    arguments = _arguments(weights, activations)
    arguments[0].requires_grad_()
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(torch.ops.dexport.quantized_linear.default, tuple(arguments), test_utils=checks)


class _Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        _, codes, scale, _, bias, *_ = _arguments("block", "dynamic block")
        for name, tensor in (("codes", codes), ("scale", scale), ("bias", bias)):
            self.register_buffer(name, tensor)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.dexport.quantized_linear(
            x.relu(), self.codes, self.scale, None, self.bias, None, None, "int4", "int8", "dynamic", 8, ""
        )


def test_export_keeps_it_whole() -> None:
    layer, x = _Layer(), _random(2, TOKENS, INPUTS)
    batch = torch.export.Dim("batch")
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: batch},)).run_decompositions()
    names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert names == ["aten.relu.default", "dexport.quantized_linear.default"]
    assert torch.equal(program.module()(_random(3, TOKENS, INPUTS)), layer(_random(3, TOKENS, INPUTS)))


def test_weights_come_back_in_their_dtype() -> None:
    for name, spec in WEIGHTS.items():
        found = quantize_weight(_random(OUTPUTS, INPUTS), spec)
        for dtype in (torch.float32, torch.float16, torch.float64):
            real = dequantized(found.codes, found.scale, found.coarse, found.format, dtype)
            assert real.dtype is dtype and real.shape == (OUTPUTS, INPUTS), name
            assert torch.allclose(real.double(), dequantized(found.codes, found.scale, found.coarse, found.format).double(), rtol=2e-3), (
                name
            )
