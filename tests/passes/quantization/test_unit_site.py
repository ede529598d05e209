"""A site as a function does what the quantized graph does, whatever is decided for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from dexport.passes.graph import run
from dexport.passes.quantization.decide import decide
from dexport.passes.quantization.quantize import quantize
from dexport.passes.quantization.recipe import ActivationSpec, LowRankSpec, Treatment, WeightSpec
from dexport.passes.quantization.scratch import Scratch
from dexport.passes.quantization.sites import sites
from dexport.passes.quantization.unit_site import PartValues, decided_values, real_weights, site_function
from dexport.passes.quantization.values import ActivationValues, SiteValues
from tests.passes.graphs import LATENT, example, graph_of

INT4 = WeightSpec(format="int4")
DYNAMIC = Treatment(weights=INT4, activations=ActivationSpec(format="int8", mode="dynamic"))
TREATMENTS = {
    "weights alone": Treatment(weights=INT4),
    "dynamic": DYNAMIC,
    "dynamic-centred": replace(DYNAMIC, activations=ActivationSpec(format="int8", mode="dynamic-centred")),
    "blocks": Treatment(
        weights=WeightSpec(format="int4", granularity="block-16"), activations=ActivationSpec(format="int4", mode="dynamic")
    ),
    "mxfp4": Treatment(weights=WeightSpec(format="mxfp4"), activations=ActivationSpec(format="mxfp4", mode="dynamic")),
    "rotated": replace(DYNAMIC, rotate="hadamard"),
    "low rank": replace(DYNAMIC, low_rank=LowRankSpec(rank=2)),
    "bypass": replace(DYNAMIC, bypass_tokens=2),
}


class Wide(nn.Module):
    """A linear of 32 inputs, some of whose channels are joined."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(32, 8)

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        return self.layer(torch.cat([latent, latent * 2, latent.square(), latent - 1], -1))


def _both(values: SiteValues, step: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Output of the function and of the quantized graph."""
    graph = graph_of(Wide())
    (site,) = sites(graph)
    inputs = example((LATENT,), 3)
    quantized = quantize(graph, {site.name: values})
    if quantized.rows is not None:
        inputs |= {"step_values_quantization": quantized.rows[step : step + 1]}
    x = inputs["latent"]
    x = torch.cat([x, x * 2, x.square(), x - 1], -1)
    node = next(n for n in graph.module.graph.nodes if n.name == site.node)
    function = site_function(site, node, values, graph.weights[site.weight])
    bias = graph.weights["layer.bias"].load()
    got = function(x, bias, decided_values(values), torch.full((3,), step), lambda exact, rounded: rounded)
    return got, run(quantized.graph, inputs)["out"]


def _decided(treatment: Treatment, folder: Path) -> SiteValues:
    return decide(graph_of(Wide()), {"layer": treatment}, {}, Scratch(folder)).values["layer"]


@pytest.mark.parametrize("name", TREATMENTS)
def test_equals_the_quantized_graph(name: str, tmp_path: Path) -> None:
    got, wanted = _both(_decided(TREATMENTS[name], tmp_path))
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("scale", "centre"),
    [
        (torch.tensor(0.02), None),
        (torch.tensor(0.02), torch.tensor(0.3)),
        (torch.tensor(0.02), torch.linspace(-1, 1, 32)),
        (torch.linspace(0.01, 0.05, 6)[:, None], None),
    ],
    ids=["tensor", "centred", "centred per channel", "token groups"],
)
@pytest.mark.parametrize("mode", ["static", "table"])
def test_calibrated_modes_equal_the_quantized_graph(mode: str, scale: torch.Tensor, centre: torch.Tensor | None, tmp_path: Path) -> None:
    values = _decided(DYNAMIC, tmp_path)
    if mode == "table":  # three steps, the second one used
        scale = torch.stack([scale.flatten() * f for f in (1.0, 3.0, 0.5)]).squeeze(1)
        centre = None if centre is None else torch.stack([centre.flatten() * f for f in (2.0, 1.0, 0.0)]).squeeze(1)
    activations = ActivationValues("int8", mode, scale=scale, centre=centre)
    part = replace(values.parts[0], activations=activations)
    got, wanted = _both(replace(values, parts=(part,)), step=1)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_rows_of_one_batch_may_be_at_different_steps(tmp_path: Path) -> None:
    values = _decided(DYNAMIC, tmp_path)
    part = replace(values.parts[0], activations=ActivationValues("int4", "table", scale=torch.tensor([0.1, 0.4])))
    values = replace(values, parts=(part,))
    graph = graph_of(Wide())
    (site,) = sites(graph)
    node = next(n for n in graph.module.graph.nodes if n.name == site.node)
    function = site_function(site, node, values, graph.weights[site.weight])
    x = torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(0))
    together = function(x, None, decided_values(values), torch.tensor([0, 1]), lambda exact, rounded: rounded)
    apart = [function(x[i : i + 1], None, decided_values(values), torch.tensor([i]), lambda exact, rounded: rounded) for i in (0, 1)]
    torch.testing.assert_close(together, torch.cat(apart))


@pytest.mark.parametrize("name", ["weights alone", "rotated", "low rank"])
def test_real_weights_are_what_was_rounded(name: str, tmp_path: Path) -> None:
    """With them, and nothing rounded, the site is what it was."""
    values = _decided(replace(TREATMENTS[name], activations=None), tmp_path)
    values = replace(values, multiplier=torch.linspace(0.5, 2, 32)) if name == "weights alone" else values
    graph = graph_of(Wide())
    (site,) = sites(graph)
    own = graph.weights[site.weight]
    node = next(n for n in graph.module.graph.nodes if n.name == site.node)
    x = torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(0))
    parts = [PartValues(weight, None) for weight in real_weights(own, values)]
    got = site_function(site, node, values, own)(x, None, parts, torch.zeros(2, dtype=torch.int64), lambda exact, rounded: rounded)
    torch.testing.assert_close(got, x @ own.load().T, rtol=1e-4, atol=1e-4)


def test_pieces_of_a_concatenation_are_rounded_apart(tmp_path: Path) -> None:
    values = _decided(replace(DYNAMIC, split_concat=True), tmp_path)
    assert [part.channels and len(part.channels) for part in values.parts] == [8, 8, 8, 8]
    got, wanted = _both(values)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["static", "table", "dynamic"])
def test_convolutions_equal_the_quantized_graph(mode: str, tmp_path: Path) -> None:
    class Convolution(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv1d(6, 4, 3, stride=2, padding=1)

        def forward(self, latent: torch.Tensor) -> torch.Tensor:
            return self.layer(latent)

    torch.manual_seed(0)
    graph = graph_of(Convolution())
    values = decide(graph, {"layer": DYNAMIC}, {}, Scratch(tmp_path)).values["layer"]
    scale = {"static": torch.tensor(0.02), "table": torch.tensor([0.1, 0.02]), "dynamic": None}[mode]
    part = replace(values.parts[0], activations=ActivationValues("int8", mode, scale=scale))
    values = replace(values, parts=(part,))
    (site,) = sites(graph)
    node = next(n for n in graph.module.graph.nodes if n.name == site.node)
    quantized, inputs = quantize(graph, {"layer": values}), example((LATENT,), 3)
    x, bias = inputs["latent"], graph.weights["layer.bias"].load()
    got = site_function(site, node, values, graph.weights[site.weight])(
        x, bias, decided_values(values), torch.ones(3, dtype=torch.int64), lambda exact, rounded: rounded
    )
    if quantized.rows is not None:
        inputs |= {"step_values_quantization": quantized.rows[1:]}
    torch.testing.assert_close(got, run(quantized.graph, inputs)["out"], rtol=1e-5, atol=1e-5)
