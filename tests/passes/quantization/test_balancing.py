"""Multipliers of a graph: one for all sites that read one value."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from dexport.passes.graph import Graph
from dexport.passes.quantization.balance import input_span, multiplier
from dexport.passes.quantization.balancing import multipliers, quantized_output
from dexport.passes.quantization.recipe import ActivationSpec, BalanceSpec, LowRankSpec, Treatment, WeightSpec
from dexport.passes.quantization.simulate import simulated_activations, simulated_weight
from dexport.passes.quantization.sites import Site, sites
from dexport.passes.quantization.statistics import SiteStatistics
from tests.passes.quantization.layers import latent, linears, observed

SMOOTH = BalanceSpec(method="smoothquant", alpha=0.3)
WEIGHTS, ACTIVATIONS = WeightSpec(format="int4"), ActivationSpec(format="int4", mode="dynamic")


@pytest.fixture(scope="module")
def graph() -> Graph:
    return linears()


@pytest.fixture(scope="module")
def seen(graph: Graph) -> dict[str, SiteStatistics]:
    return observed(graph, [latent(graph, 1, step) for step in range(2)])


def _treated(graph: Graph, **treatments: Treatment) -> dict[Site, Treatment]:
    return {site: treatments[site.name] for site in sites(graph) if site.name in treatments}


def test_sites_of_one_value_share_the_multiplier_of_their_stacked_weights(graph: Graph, seen: dict[str, SiteStatistics]) -> None:
    treatment = Treatment(weights=WEIGHTS, balance=SMOOTH)
    found = multipliers(graph, _treated(graph, q=treatment, k=treatment, v=treatment, leave=treatment), seen)
    stacked = torch.cat([graph.weights[f"{name}.weight"].load() for name in "qkv"])
    assert found["q"] is found["k"] is found["v"]
    assert torch.equal(found["q"], multiplier(seen["q"].absmax.amax(0), input_span(stacked), SMOOTH))
    alone = input_span(graph.weights["leave.weight"].load())
    assert torch.equal(found["leave"], multiplier(seen["leave"].absmax.amax(0), alone, SMOOTH))


def test_only_what_asks_is_balanced_and_each_as_it_asks(graph: Graph, seen: dict[str, SiteStatistics]) -> None:
    other = Treatment(weights=WEIGHTS, balance=BalanceSpec(method="vidit-q", alpha=0.3))
    treated = _treated(graph, q=Treatment(weights=WEIGHTS, balance=SMOOTH), k=other, v=Treatment(weights=WEIGHTS))
    found = multipliers(graph, treated, seen)
    assert set(found) == {"q", "k"} and not torch.allclose(found["q"], found["k"])


@pytest.mark.parametrize("low_rank", [None, LowRankSpec(rank=4, iterations=50)])
def test_the_search_is_no_worse_than_nothing(graph: Graph, seen: dict[str, SiteStatistics], low_rank: LowRankSpec | None) -> None:
    treatment = Treatment(weights=WEIGHTS, activations=ACTIVATIONS, balance=BalanceSpec(method="search"), low_rank=low_rank)
    m = multipliers(graph, _treated(graph, leave=treatment), seen)["leave"]
    rows, weight, output = seen["leave"].rows, graph.weights["leave.weight"].load(), quantized_output(treatment)
    exact = functional.linear(rows, weight)
    balanced, plain = (float((output(rows * f, weight / f) - exact).square().mean()) for f in (m, torch.ones_like(m)))
    assert balanced <= plain


def test_quantized_output(graph: Graph, seen: dict[str, SiteStatistics]) -> None:
    rows, weight = seen["leave"].rows, graph.weights["leave.weight"].load()
    plain = quantized_output(Treatment(weights=WEIGHTS, activations=ACTIVATIONS))(rows, weight)
    assert torch.equal(plain, functional.linear(simulated_activations(rows, ACTIVATIONS), simulated_weight(weight, WEIGHTS)))
    branch = quantized_output(Treatment(weights=WEIGHTS, low_rank=LowRankSpec(rank=16)))(rows, weight)
    assert torch.allclose(branch, functional.linear(rows, weight), atol=1e-2)  # of full rank: all is in the branch
