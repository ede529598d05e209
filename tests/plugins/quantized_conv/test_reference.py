"""`quantized_conv` against a convolution by loops in double precision, and as an operation of PyTorch."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from dexport.passes.quantization.recipe import WeightSpec
from dexport.passes.quantization.weights import dequantize, quantize_weight
from dexport.plugins.formats import format_of
from dexport.plugins.quantized_conv.reference import picture_scale, quantized_conv, quantized_conv_reference

CASES: dict[str, dict[str, Any]] = {
    "static": {"scale": torch.tensor(0.02)},
    "table": {"mode": "table", "scale": torch.tensor([[0.02]])},
    "dynamic": {"mode": "dynamic", "scale": None},
    "dynamic float": {"mode": "dynamic", "scale": None, "format": "e4m3"},
    "none": {"mode": "none", "format": "", "scale": None},
    "strides": {"scale": torch.tensor(0.02), "stride": 2, "padding": 1, "dilation": 2},
    "groups": {"mode": "dynamic", "scale": None, "groups": 2, "padding": 1},
    "tensor": {"scale": torch.tensor(0.02), "weights": WeightSpec(format="int8", granularity="tensor")},
    "float weights": {"scale": torch.tensor(0.02), "weights": WeightSpec(format="e2m1")},
}


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _arguments(case: str, dims: int = 2, dtype: torch.dtype = torch.float32) -> list[Any]:
    defaults: dict[str, Any] = {
        "mode": "static", "format": "int8", "stride": 1, "padding": 0, "dilation": 1, "groups": 1, "weights": WeightSpec(format="int4"),
    }  # fmt: skip
    given = defaults | CASES[case]
    found = quantize_weight(_random(6, 4 // given["groups"], *[3] * dims, seed=1), given["weights"])
    sizes = [[given[name]] * dims for name in ("stride", "padding", "dilation")]
    x, bias = _random(2, 4, *[6] * dims).to(dtype), _random(6, seed=2).to(dtype)
    scale = None if given["scale"] is None else given["scale"].to(dtype)
    return [x, found.codes, found.scale.to(dtype), bias, scale, found.format, given["format"], given["mode"], *sizes, given["groups"]]


def _rounded(picture: torch.Tensor, scale: torch.Tensor | None, name: str) -> torch.Tensor:
    number = format_of(name)
    step = float(picture.abs().max()) / number.largest if scale is None else float(scale)
    return number.round(picture / step) * step


def _slow(arguments: list[Any]) -> torch.Tensor:
    """One product at a time, two spatial axes."""
    x, codes, weight_scale, bias, scale, weight_format, name, mode, stride, padding, dilation, groups = arguments
    weight = format_of(weight_format).decode(codes, torch.float64) * weight_scale.double()
    pictures = [p.double() if mode == "none" else _rounded(p.double(), scale, name) for p in x]
    padded = torch.nn.functional.pad(torch.stack(pictures), [padding[1], padding[1], padding[0], padding[0]])
    reach = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilation, strict=True)]
    height, width = ((padded.shape[2 + a] - reach[a]) // stride[a] + 1 for a in (0, 1))
    result = torch.zeros(len(pictures), len(weight), height, width, dtype=torch.float64)
    own = weight.shape[1]
    for b, o, i, j in itertools.product(range(len(pictures)), range(len(weight)), range(height), range(width)):
        first = o // (len(weight) // groups) * own
        rows = slice(i * stride[0], i * stride[0] + reach[0], dilation[0])
        columns = slice(j * stride[1], j * stride[1] + reach[1], dilation[1])
        result[b, o, i, j] = (padded[b, first : first + own, rows, columns] * weight[o]).sum() + bias[o].double()
    return result


@pytest.mark.parametrize("case", CASES)
def test_means_what_it_says(case: str) -> None:
    arguments = _arguments(case)
    found = quantized_conv(*arguments)
    assert torch.allclose(found.double(), _slow(arguments), rtol=1e-5, atol=1e-5)
    assert torch.equal(found, quantized_conv_reference(*arguments))


@pytest.mark.parametrize("dims", [1, 3])
def test_one_and_three_axes(dims: int) -> None:
    """Against PyTorch's convolution of the rounded operands."""
    arguments = _arguments("static", dims)
    x, codes, _, bias, step, name = arguments[:6]
    found = quantize_weight(_random(6, 4, *[3] * dims, seed=1), WeightSpec(format="int4"))
    assert name == "int4" and torch.equal(found.codes, codes)
    convolution = torch.nn.functional.conv1d if dims == 1 else torch.nn.functional.conv3d
    expected = convolution(_rounded(x.double(), step, "int8"), dequantize(found).double(), bias.double())
    assert torch.allclose(quantized_conv(*arguments).double(), expected, rtol=1e-5, atol=1e-5)


def test_a_picture_has_its_own_dynamic_scale() -> None:
    """What one picture holds does not change another."""
    arguments = _arguments("dynamic")
    before = quantized_conv(*arguments)
    arguments[0] = arguments[0] * torch.tensor([1.0, 1000.0])[:, None, None, None]
    assert torch.equal(quantized_conv(*arguments)[0], before[0])
    assert picture_scale(arguments[0], "int8").shape == (2, 1, 1, 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits(dtype: torch.dtype) -> None:
    arguments = _arguments("dynamic", dtype=dtype)
    found, exact = quantized_conv(*arguments), _slow(arguments)
    assert found.dtype is dtype and float((found.double() - exact).norm() / exact.norm()) < (0.01 if dtype is torch.float16 else 0.04)
    arguments[0] = arguments[0] * 0
    assert torch.equal(quantized_conv(*arguments), arguments[3][:, None, None].expand(found.shape))  # no division by zero


@pytest.mark.parametrize("case", ["static", "dynamic", "groups", "none"])
def test_gradients_are_those_of_the_reference(case: str) -> None:
    def gradients(operation: Any) -> list[torch.Tensor | None]:
        arguments = _arguments(case, dtype=torch.float64)
        leaves = [arguments[k].requires_grad_() for k in (0, 2, 3, 4) if arguments[k] is not None]
        operation(*arguments).square().sum().backward()
        return [leaf.grad for leaf in leaves]

    for own, other in zip(gradients(quantized_conv), gradients(quantized_conv_reference), strict=True):
        assert own is not None and other is not None and torch.allclose(own, other) and bool(own.any())


@pytest.mark.parametrize("case", ["static", "groups", "strides"])
def test_is_a_proper_operation(case: str) -> None:
    arguments = _arguments(case)
    arguments[0].requires_grad_()
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(torch.ops.dexport.quantized_conv.default, tuple(arguments), test_utils=checks)


class _Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        _, codes, scale, bias, *_ = _arguments("dynamic")
        for name, tensor in (("codes", codes), ("scale", scale), ("bias", bias)):
            self.register_buffer(name, tensor)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.dexport.quantized_conv(
            x.relu(), self.codes, self.scale, self.bias, None, "int4", "int8", "dynamic", [1, 1], [0, 0], [1, 1], 1
        )


def test_export_keeps_it_whole() -> None:
    layer = _Layer()
    program = torch.export.export(layer, (_random(2, 4, 6, 6),), dynamic_shapes=({0: torch.export.Dim("batch")},)).run_decompositions()
    names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert names == ["aten.relu.default", "dexport.quantized_conv.default"]
    assert torch.equal(program.module()(_random(3, 4, 6, 6)), layer(_random(3, 4, 6, 6)))
