"""A multiplier goes into adaptive layer norm where everybody who reads it is balanced alike, and nowhere else."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

from dexport.exporter.capture import Input
from dexport.passes.graph import BATCH, Graph, Kind, run
from dexport.passes.quantization.parts import RealWeight, quantized_part
from dexport.passes.quantization.quantize import quantize
from dexport.passes.quantization.recipe import WeightSpec
from dexport.passes.quantization.scratch import Scratch
from dexport.passes.quantization.sites import sites
from dexport.passes.quantization.values import SiteValues
from tests.passes.graphs import graph_of, operations

TOKENS, CHANNELS = 6, 16
INPUTS = (
    Input("latent", (BATCH, TOKENS, CHANNELS), torch.float32, Kind.LATENT),
    Input("rows", (BATCH, 2, CHANNELS), torch.float32, Kind.PROMPT),
)


class Modulated(nn.Module):
    """Two layers that read a modulated value, one that reads it unmodulated, perhaps somebody else who reads it too."""

    def __init__(self, observed: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(CHANNELS, elementwise_affine=False)
        self.q, self.k, self.plain = (nn.Linear(CHANNELS, CHANNELS) for _ in range(3))
        self.observed = observed

    def forward(self, latent: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        scale, shift = rows[:, :1], rows[:, 1:]
        modulated = shift + (1 + scale) * self.norm(latent)
        result = self.q(modulated) * self.k(modulated) + self.plain(latent)
        return result + modulated if self.observed else result


def _graph(observed: bool = False) -> Graph:
    torch.manual_seed(0)
    return graph_of(Modulated(observed), INPUTS)


def _balanced(graph: Graph, multipliers: dict[str, torch.Tensor]) -> Graph:
    """Weights of 8 bits, W / m."""
    values = {}
    for site in sites(graph):
        if (m := multipliers.get(site.name)) is not None:
            weight = graph.weights[site.weight].load() / m
            real = RealWeight(lambda weight=weight: weight, tuple(weight.shape), site.name)
            part = quantized_part(real, WeightSpec(format="int8"), None, Scratch(Path()), torch.float32)
            values[site.name] = SiteValues((part,), multiplier=m)
    return quantize(graph, values).graph


def _products_of_tokens(graph: Graph) -> int:
    """Products with as many elements as the latent has."""
    nodes = graph.module.graph.nodes
    return sum(n.target is torch.ops.aten.mul.Tensor and tuple(n.meta["val"].shape[1:]) == (TOKENS, CHANNELS) for n in nodes)


M = torch.linspace(0.25, 4.0, CHANNELS)


@pytest.mark.parametrize("observed", [False, True])
@pytest.mark.parametrize("multipliers", [{"q": M, "k": M}, {"q": M}, {"q": M, "k": M.flip(0)}, {"plain": M}])
def test_the_meaning_stays(observed: bool, multipliers: dict[str, torch.Tensor]) -> None:
    graph = _graph(observed)
    latent, rows = torch.randn(2, TOKENS, CHANNELS), torch.randn(2, 2, CHANNELS)
    exact, changed = (run(g, {"latent": latent, "rows": rows}) for g in (graph, _balanced(graph, multipliers)))
    for name, before in exact.items():
        assert float((before - changed[name]).norm() / before.norm()) < 0.04  # weights are rounded; a product left out is 0.5


def test_a_multiplier_that_all_readers_share_costs_no_product_of_tokens() -> None:
    graph = _graph()
    folded = _balanced(graph, {"q": M, "k": M})
    assert _products_of_tokens(folded) == _products_of_tokens(graph)
    assert Counter(operations(folded))["mul.Tensor"] == Counter(operations(graph))["mul.Tensor"] + 2


@pytest.mark.parametrize(
    ("observed", "multipliers", "more"),
    [(True, {"q": M, "k": M}, 1), (False, {"q": M}, 1), (False, {"q": M, "k": M.flip(0)}, 2), (False, {"plain": M}, 1)],
    ids=["somebody else reads it", "one of two", "not alike", "no modulation"],
)
def test_elsewhere_it_is_a_product(observed: bool, multipliers: dict[str, torch.Tensor], more: int) -> None:
    graph = _graph(observed)
    assert _products_of_tokens(_balanced(graph, multipliers)) == _products_of_tokens(graph) + more
