"""Decided values written into graphs: the result is what the values say, and all of the rest stays."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from dexport.passes.graph import Graph, Kind, Port, Weight, run
from dexport.passes.quantization.parts import RealWeight, quantized_part
from dexport.passes.quantization.quantize import Quantized, quantize
from dexport.passes.quantization.recipe import WeightSpec
from dexport.passes.quantization.rotation import random_signs, rotate, rotated_weight
from dexport.passes.quantization.scratch import Scratch
from dexport.passes.quantization.sites import sites
from dexport.passes.quantization.step_table import QUANTIZATION_VALUES
from dexport.passes.quantization.values import ActivationValues, QuantizedPart, SiteValues
from dexport.plugins.activations import quantize_rows
from dexport.plugins.formats import fake_quantize, format_of
from dexport.plugins.quantized_linear.reference import dequantized
from tests.passes.graphs import operations
from tests.passes.quantization.layers import CHANNELS, TOKENS, convolutions, entering, exact_linears, latent, leaving

INT8, INT4 = WeightSpec(format="int8"), WeightSpec(format="int4")
NUMBER = format_of("int8")


@pytest.fixture(scope="module")
def graph() -> Graph:
    return exact_linears()


@pytest.fixture(scope="module")
def pictures() -> Graph:
    return convolutions()


def _real(graph: Graph, site: str) -> torch.Tensor:
    return graph.weights[next(s.weight for s in sites(graph) if s.name == site)].load()


def _part(
    weight: torch.Tensor,
    activations: ActivationValues | None = None,
    channels: tuple[int, ...] | None = None,
    spec: WeightSpec = INT8,
) -> QuantizedPart:
    real = RealWeight(lambda: weight, tuple(weight.shape), "w")
    return quantized_part(real, spec, activations, Scratch(Path()), torch.float32, channels=channels)


def _whole(graph: Graph, site: str, activations: ActivationValues | None = None, spec: WeightSpec = INT8) -> SiteValues:
    return SiteValues((_part(_real(graph, site), activations, spec=spec),))


def _bias(graph: Graph, site: str) -> torch.Tensor | None:
    weight = graph.weights.get(f"{site}.bias")
    return None if weight is None else weight.load()


def _codes(part: QuantizedPart) -> torch.Tensor:
    return dequantized(part.codes.load(), part.scale.load(), None, part.format)


def _step(quantized: Quantized, k: int, batch: int = 2) -> dict[str, torch.Tensor]:
    """Inputs of a graph whose scales go by step."""
    assert quantized.rows is not None
    return {**latent(quantized.graph, batch), QUANTIZATION_VALUES: quantized.rows[k : k + 1]}


def test_weights_that_the_codes_hold_exactly_change_nothing(graph: Graph) -> None:
    before, weights = operations(graph), dict(graph.weights)
    found = quantize(graph, {site.name: _whole(graph, site.name) for site in sites(graph)})
    for batch in (1, 3):
        inputs = latent(graph, batch)
        assert torch.equal(run(found.graph, inputs)["out"], run(graph, inputs)["out"])
    assert found.rows is None and found.graph.inputs == graph.inputs and found.graph.outputs == graph.outputs
    counted = Counter(operations(found.graph))
    assert counted["dexport.quantized_linear.default"] == 8 and counted["linear.default"] == 0
    assert not any(name.endswith(".weight") for name in found.graph.weights)  # the real ones are not held any more
    assert operations(graph) == before and graph.weights == weights  # the graph that was given is as it was
    for node in found.graph.module.graph.nodes:
        assert (node.meta.get("site") is not None) == ("quantized_linear" in str(node.target))
    assert {n.meta["site"] for n in found.graph.module.graph.nodes if "site" in n.meta} == {site.name for site in sites(graph)}


def test_sites_that_are_not_named_stay(graph: Graph) -> None:
    found = quantize(graph, {"v": _whole(graph, "v", spec=INT4)}).graph
    assert {site.name for site in sites(found)} == {site.name for site in sites(graph)} - {"v"}


def test_an_unknown_site_is_a_key_error(graph: Graph) -> None:
    with pytest.raises(KeyError, match="blocks"):
        quantize(graph, {"blocks": _whole(graph, "v")})
    with pytest.raises(KeyError, match="v"):  # quantized before: no site any more
        quantize(quantize(graph, {"v": _whole(graph, "v")}).graph, {"v": _whole(graph, "v")})


@pytest.mark.parametrize("centre", [None, torch.tensor(0.25), torch.linspace(-1, 1, CHANNELS)])
@pytest.mark.parametrize("scale", [torch.tensor(0.01), torch.linspace(0.005, 0.02, TOKENS)[:, None]])
def test_static_activations(graph: Graph, centre: torch.Tensor | None, scale: torch.Tensor) -> None:
    values = _whole(graph, "v", ActivationValues("int8", "static", scale=scale, centre=centre), INT4)
    found, inputs = quantize(graph, {"v": values}).graph, latent(graph)
    x, middle = entering(graph, inputs)["v"], 0 if centre is None else centre
    rounded = fake_quantize(x - middle, scale, NUMBER) + middle
    expected = functional.linear(rounded, _codes(values.parts[0]), _bias(graph, "v"))
    assert torch.allclose(leaving(found, inputs, "v"), expected, atol=1e-5)


def test_dynamic_blocks(graph: Graph) -> None:
    spec = WeightSpec(format="int4", granularity="block-8")
    values = _whole(graph, "v", ActivationValues("int4", "dynamic", block=8), spec)
    found, inputs = quantize(graph, {"v": values}).graph, latent(graph)
    rounded = quantize_rows(entering(graph, inputs)["v"], format_of("int4"), 8)
    expected = functional.linear(rounded, _codes(values.parts[0]), _bias(graph, "v"))
    assert torch.allclose(leaving(found, inputs, "v"), expected, atol=1e-5)


@pytest.mark.parametrize("order", [("q", "k", "v"), ("v", "q", "k")])
def test_sites_of_one_value_share_its_product_and_rotation(graph: Graph, order: tuple[str, ...]) -> None:
    """Also if the values are given in another order than the graph's."""
    m, signs = torch.linspace(0.5, 2, CHANNELS), random_signs(CHANNELS, CHANNELS)
    values = {
        name: SiteValues((_part(rotated_weight(_real(graph, name) / m, signs), spec=INT4),), multiplier=m, signs=signs) for name in order
    }
    found, inputs = quantize(graph, values).graph, latent(graph)
    new = Counter(operations(found)) - Counter(operations(graph))
    assert new == {"dexport.quantized_linear.default": 3, "mul.Tensor": 2, "matmul.default": 1}  # times m, times signs, times H
    x = rotate(entering(graph, inputs)["q"] * m, signs)
    for name in order:
        expected = functional.linear(x, _codes(values[name].parts[0]), _bias(graph, name))
        assert torch.allclose(leaving(found, inputs, name), expected, atol=1e-5)


def test_multipliers_of_their_own_are_not_shared(graph: Graph) -> None:
    values = {}
    for name, factor in (("q", 2.0), ("k", 4.0)):
        m = torch.full((CHANNELS,), factor)
        values[name] = SiteValues((_part(_real(graph, name) / m),), multiplier=m)
    found, inputs = quantize(graph, values).graph, latent(graph)
    assert (Counter(operations(found)) - Counter(operations(graph)))["mul.Tensor"] == 2
    assert torch.allclose(run(found, inputs)["out"], run(graph, inputs)["out"], rtol=1e-4, atol=1e-4)


def test_rotations_of_their_own_are_not_shared(graph: Graph) -> None:
    values = {}
    for seed, name in enumerate("qk"):
        signs = random_signs(CHANNELS, seed)
        values[name] = SiteValues((_part(rotated_weight(_real(graph, name), signs), spec=WeightSpec(format="int8")),), signs=signs)
    found, inputs = quantize(graph, values).graph, latent(graph)
    for name in "qk":
        exact = functional.linear(entering(graph, inputs)[name], _real(graph, name), _bias(graph, name))
        assert float((leaving(found, inputs, name) - exact).norm() / exact.norm()) < 0.02


def test_a_graph_may_be_quantized_site_after_site(graph: Graph) -> None:
    """What was written first stays what it is."""
    spec, inputs, found = WeightSpec(format="int8", granularity="tensor"), latent(graph), graph
    for name, first in (("q", (0, 2, 4)), ("k", (0, 3, 6))):
        rest = tuple(k for k in range(CHANNELS) if k not in first)
        found = quantize(found, {name: SiteValues(tuple(_part(_real(graph, name), None, c, spec) for c in (first, rest)))}).graph
    assert torch.allclose(run(found, inputs)["out"], run(graph, inputs)["out"], rtol=1e-4, atol=1e-4)


TABLES = {
    "tensor": (torch.tensor([0.01, 0.02, 0.004]), None),
    "tokens": (torch.rand(3, TOKENS, generator=torch.Generator().manual_seed(0)) * 0.01 + 0.005, None),
    "centre": (torch.tensor([0.01, 0.02, 0.004]), torch.tensor([0.25, -0.5, 0.0])),
    "centre of channels": (
        torch.tensor([0.01, 0.02, 0.004]),
        torch.randn(3, CHANNELS, generator=torch.Generator().manual_seed(1)),
    ),
}


@pytest.mark.parametrize("kind", TABLES)
def test_a_row_of_a_table_is_like_a_constant(graph: Graph, kind: str) -> None:
    scale, centre = TABLES[kind]
    found = quantize(graph, {"v": _whole(graph, "v", ActivationValues("int8", "table", scale=scale, centre=centre))})
    width = scale[0].numel() + (0 if centre is None else centre[0].numel())
    assert found.rows is not None and found.rows.shape == (3, width) and found.rows.dtype is torch.float32
    for k in range(3):
        own = scale[k] if scale.dim() == 1 else scale[k][:, None]
        constant = ActivationValues("int8", "static", scale=own, centre=None if centre is None else centre[k])
        static = quantize(graph, {"v": _whole(graph, "v", constant)}).graph
        inputs = _step(found, k)
        assert torch.allclose(run(found.graph, inputs)["out"], run(static, {"latent": inputs["latent"]})["out"], rtol=1e-6, atol=1e-6)


def test_tables_of_several_sites_are_packed_into_one_input(graph: Graph) -> None:
    one, two, both = torch.tensor([0.01, 0.02]), torch.rand(2, TOKENS) * 0.01 + 0.01, torch.tensor([0.03, 0.04])
    values = {
        "enter": _whole(graph, "enter", ActivationValues("int8", "table", scale=one)),
        "q": _whole(graph, "q", ActivationValues("int8", "table", scale=both)),
        "k": _whole(graph, "k", ActivationValues("int8", "table", scale=both)),  # shares the column
        "v": _whole(graph, "v", ActivationValues("int8", "static", scale=torch.tensor(0.02))),
        "join": _whole(graph, "join", ActivationValues("int8", "table", scale=two)),
    }
    found = quantize(graph, values)
    width = 2 + TOKENS
    assert found.rows is not None and torch.equal(found.rows, torch.cat([one[:, None], both[:, None], two], 1))
    assert found.graph.inputs == (*graph.inputs, Port(QUANTIZATION_VALUES, torch.float32, (1, width), frozenset([Kind.STEP])))
    for k in range(2):
        constant = {name: _at(value, k) for name, value in values.items()}
        inputs = _step(found, k)
        static = run(quantize(graph, constant).graph, {"latent": inputs["latent"]})["out"]
        assert torch.allclose(run(found.graph, inputs)["out"], static, rtol=1e-6, atol=1e-6)


def _at(values: SiteValues, k: int) -> SiteValues:
    """A site with the constant of one step."""
    activations = values.parts[0].activations
    assert activations is not None and activations.scale is not None
    if activations.mode != "table":
        return values
    scale = activations.scale[k] if activations.scale.dim() == 1 else activations.scale[k][:, None]
    return replace(values, parts=(replace(values.parts[0], activations=replace(activations, mode="static", scale=scale)),))


@pytest.mark.parametrize("mode", ["static", "table"])
def test_leading_tokens_may_pass_by(graph: Graph, mode: str) -> None:
    constant = torch.linspace(0.005, 0.02, TOKENS - 2)
    scale = constant[:, None] if mode == "static" else constant[None].repeat(3, 1)
    values = replace(_whole(graph, "v", ActivationValues("int4", mode, scale=scale), INT4), bypass=2)
    found = quantize(graph, {"v": values})
    inputs = latent(graph) if mode == "static" else _step(found, 1)
    x, y = entering(graph, inputs)["v"], leaving(found.graph, inputs, "v")
    exact = functional.linear(x, _real(graph, "v"), _bias(graph, "v"))
    assert y.shape == exact.shape and torch.allclose(y[:, :2], exact[:, :2], atol=1e-6)
    rounded = fake_quantize(x[:, 2:], constant[:, None], format_of("int4"))
    assert torch.allclose(y[:, 2:], functional.linear(rounded, _codes(values.parts[0]), _bias(graph, "v")), atol=1e-5)


SPLITS = {
    "pieces": (tuple(range(16)), tuple(range(16, 48))),
    "groups": (tuple(range(0, 48, 3)), tuple(k for k in range(48) if k % 3)),
}


@pytest.mark.parametrize("split", SPLITS)
def test_parts_add_up_to_the_whole(graph: Graph, split: str) -> None:
    parts = tuple(
        _part(_real(graph, "join"), None, channels, WeightSpec(format="int8", granularity="tensor")) for channels in SPLITS[split]
    )
    found, inputs = quantize(graph, {"join": SiteValues(parts)}).graph, latent(graph)
    x = entering(graph, inputs)["join"]
    assert torch.allclose(leaving(found, inputs, "join"), functional.linear(x, _real(graph, "join"), _bias(graph, "join")), atol=1e-4)
    assert (Counter(operations(found)) - Counter(operations(graph)))["dexport.quantized_linear.default"] == 2


def test_every_part_has_its_own_scale(graph: Graph) -> None:
    """Also from a table, and with a number of channels that is that of the tokens."""
    scales = torch.tensor([[0.5, 0.001], [0.4, 0.002]])
    parts = tuple(
        _part(_real(graph, "join"), ActivationValues("int8", "table", scale=scales[:, k]), channels)
        for k, channels in enumerate(SPLITS["groups"])
    )
    found = quantize(graph, {"join": SiteValues(parts)})
    for step in range(2):
        inputs = _step(found, step)
        x, expected = entering(graph, inputs)["join"], _bias(graph, "join")
        for k, (part, channels) in enumerate(zip(parts, SPLITS["groups"], strict=True)):
            expected = expected + functional.linear(fake_quantize(x[..., channels], scales[step, k], NUMBER), _codes(part))
        assert torch.allclose(leaving(found.graph, inputs, "join"), expected, atol=1e-4)


def test_sites_of_one_value_may_be_split_differently(graph: Graph) -> None:
    """Groups of one size that begin with the same channel are still different groups."""
    splits = {"q": (0, 2, 4), "k": (0, 3, 6)}
    values = {}
    for name, first in splits.items():
        rest = tuple(k for k in range(CHANNELS) if k not in first)
        spec = WeightSpec(format="int8", granularity="tensor")
        values[name] = SiteValues(tuple(_part(_real(graph, name), None, channels, spec) for channels in (first, rest)))
    inputs = latent(graph)
    result = run(quantize(graph, values).graph, inputs)["out"]
    assert torch.allclose(result, run(graph, inputs)["out"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_branch_stands_beside(graph: Graph, dtype: torch.dtype) -> None:
    """W = up down + codes, after the product with m."""
    m = torch.linspace(0.5, 2, CHANNELS)
    down, up = (torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype) for shape in ((2, CHANNELS), (CHANNELS, 2)))
    residual = _real(graph, "v") / m - up.float() @ down.float()
    branch = tuple(Weight(tuple(t.shape), dtype, lambda t=t: t, "b") for t in (down, up))
    activations = ActivationValues("int8", "static", scale=torch.tensor(0.01))
    values = SiteValues((_part(residual, activations, spec=INT4),), multiplier=m, branch=(branch[0], branch[1]))
    found, inputs = quantize(graph, {"v": values}).graph, latent(graph)
    x = entering(graph, inputs)["v"] * m
    rounded = fake_quantize(x, torch.tensor(0.01), NUMBER)
    expected = functional.linear(rounded, _codes(values.parts[0]), _bias(graph, "v")) + x @ down.float().T @ up.float().T
    assert torch.allclose(leaving(found, inputs, "v"), expected, atol=1e-4)


def test_convolutions(pictures: Graph) -> None:
    found = quantize(pictures, {site.name: _whole(pictures, site.name) for site in sites(pictures)}).graph
    for batch in (1, 3):
        inputs = latent(pictures, batch)
        assert torch.equal(run(found, inputs)["out"], run(pictures, inputs)["out"])
    assert Counter(operations(found))["dexport.quantized_conv.default"] == 3
    assert not any("conv2d" in name for name in operations(found))


def test_convolutions_round_their_input(pictures: Graph) -> None:
    inputs = latent(pictures)
    x, weight = entering(pictures, inputs)["first"], _real(pictures, "first")
    table = torch.tensor([0.02, 0.05])
    for mode in ("static", "table", "dynamic"):
        scale = {"static": table[1], "table": table, "dynamic": None}[mode]
        found = quantize(pictures, {"first": _whole(pictures, "first", ActivationValues("int8", mode, scale=scale))})
        given = inputs if found.rows is None else {**inputs, QUANTIZATION_VALUES: found.rows[1:]}
        own = table[1] if scale is not None else x.abs().amax((1, 2, 3), keepdim=True) / 127
        expected = functional.conv2d(fake_quantize(x, own, NUMBER), weight, _bias(pictures, "first"), 2, 1)
        assert torch.allclose(leaving(found.graph, given, "first"), expected, atol=1e-5), mode


@pytest.mark.parametrize("channels", [(tuple(range(8)), tuple(range(8, 12))), (tuple(range(0, 12, 2)), tuple(range(1, 12, 2)))])
def test_parts_of_a_convolution(pictures: Graph, channels: tuple[tuple[int, ...], ...]) -> None:
    spec = WeightSpec(format="int8", granularity="tensor")
    values = SiteValues(tuple(_part(_real(pictures, "second"), None, part, spec) for part in channels))
    inputs = latent(pictures)
    result = run(quantize(pictures, {"second": values}).graph, inputs)["out"]
    assert torch.allclose(result, run(pictures, inputs)["out"], rtol=1e-4, atol=1e-4)
