"""What a value depends on follows from its sources; sizes carry no data."""

from __future__ import annotations

import torch
from torch import nn

from dexport.passes.dependence import dependence
from dexport.passes.graph import Kind
from tests.passes.graphs import LATENT, PROMPT, TIMESTEP, graph_of


class Model(nn.Module):
    """One output for each combination."""

    def forward(self, latent: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor) -> tuple[torch.Tensor, ...]:
        constant = torch.arange(8.0).sin()
        ones = torch.ones(latent.shape[0], 1, 8)  # as long as the latent, yet the same for every latent
        both = prompt * timestep
        return constant, ones, timestep.cos(), prompt + ones, both.relu(), latent * constant, both[:, :1] + latent


def test_kinds_flow_from_the_inputs() -> None:
    names = ("constant", "ones", "step", "prompt", "both", "latent", "all")
    graph = graph_of(Model(), (LATENT, TIMESTEP, PROMPT), names)
    kinds = dependence(graph)
    results = next(n for n in graph.module.graph.nodes if n.op == "output").args[0]
    step, prompt, latent = frozenset([Kind.STEP]), frozenset([Kind.PROMPT]), frozenset([Kind.LATENT])
    nothing = frozenset[Kind]()
    wanted = (nothing, nothing, step, prompt, step | prompt, latent, step | prompt | latent)
    assert dict(zip(names, (kinds[n] for n in results), strict=True)) == dict(zip(names, wanted, strict=True))  # type: ignore[index, union-attr]
