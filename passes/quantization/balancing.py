"""The balancing multiplier of every site: sites that read one value share it, as they share the quantized activation."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn import functional

from dexport.passes.graph import Graph
from dexport.passes.quantization.balance import QuantizedOutput, input_span, multiplier, search
from dexport.passes.quantization.low_rank import low_rank_split
from dexport.passes.quantization.recipe import BalanceSpec, Treatment
from dexport.passes.quantization.simulate import simulated_activations, simulated_weight
from dexport.passes.quantization.sites import Site
from dexport.passes.quantization.statistics import SiteStatistics

_SEARCH_ITERATIONS = 1
"""Of the low-rank branch while searching: one SVD per candidate; the branch itself is fitted afterwards."""


def multipliers(graph: Graph, treated: Mapping[Site, Treatment], seen: Mapping[str, SiteStatistics]) -> dict[str, torch.Tensor]:
    """Site name -> multiplier [I], for the sites that are balanced."""
    groups: dict[tuple[str, BalanceSpec], list[Site]] = {}
    for site, treatment in treated.items():
        if treatment.balance is not None:
            groups.setdefault((site.source, treatment.balance), []).append(site)
    found: dict[str, torch.Tensor] = {}
    for (_, spec), members in groups.items():
        shared = _multiplier(graph, members, treated[members[0]], spec, seen[members[0].name])
        found |= {site.name: shared for site in members}
    return found


def _multiplier(graph: Graph, members: list[Site], treatment: Treatment, spec: BalanceSpec, seen: SiteStatistics) -> torch.Tensor:
    weights = (graph.weights[site.weight].load().float() for site in members)
    absmax = seen.absmax.amax(0)
    if spec.method != "search":
        return multiplier(absmax, torch.stack([input_span(weight) for weight in weights]).amax(0), spec)
    return search(absmax, torch.cat(list(weights)), seen.rows, quantized_output(treatment)).multiplier


def quantized_output(treatment: Treatment) -> QuantizedOutput:
    """The output of a layer with rows and weight quantized as a treatment says, its low-rank branch included."""

    def output(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        assert treatment.weights is not None
        spec, low_rank = treatment.weights, treatment.low_rank
        rounded = simulated_activations(rows, treatment.activations)
        if low_rank is None:
            return functional.linear(rounded, simulated_weight(weight, spec))
        branch = low_rank_split(weight, low_rank.rank, _SEARCH_ITERATIONS, lambda w: simulated_weight(w, spec))
        side = functional.linear(functional.linear(rows, branch.down.float()), branch.up.float())
        return functional.linear(rounded, simulated_weight(branch.residual, spec)) + side

    return output
