"""Sites of a graph: their names, sources and ends."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dexport.exporter.capture import Input
from dexport.passes.graph import BATCH, Graph, Kind
from dexport.passes.quantization.sites import channel_axis, ends, kind_of, site_name, sites
from tests.passes.graphs import LATENT, PROMPT, TIMESTEP, graph_of


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.text = nn.Linear(8, 8), nn.Linear(8, 8, bias=False), nn.Linear(8, 8)
        self.shared = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        x = x.relu()
        both = self.q(x) * self.k(x) + self.text(prompt).sum(1, keepdim=True)
        return x + self.shared(self.shared(both).relu())


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.block, self.leave = nn.Linear(8, 8), _Block(), nn.Linear(8, 4)
        self.time = nn.Linear(1, 8)

    def forward(self, latent: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        moved = self.enter(latent * latent.shape[1]) + self.time(timestep[:, None])
        return self.leave(self.block(moved, prompt)).sin()


class _Picture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 6, 1, groups=2)

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(latent).relu())


@pytest.fixture(scope="module")
def graph() -> Graph:
    return graph_of(_Model(), (LATENT, TIMESTEP, PROMPT))


def test_every_layer_is_a_site_under_the_name_of_its_weight(graph: Graph) -> None:
    found = {site.name: site for site in sites(graph)}
    assert set(found) == {"enter", "time", "block.q", "block.k", "block.text", "block.shared", "block.shared#2", "leave"}
    leave = found["leave"]
    assert (leave.kind, leave.shape, leave.inputs, leave.parameters, leave.weight) == ("linear", (4, 8), 8, 32, "leave.weight")
    assert [site.name for site in sites(graph)].index("enter") < [site.name for site in sites(graph)].index("leave")
    nodes = {node.name: node for node in graph.module.graph.nodes}
    assert all(kind_of(nodes[site.node]) == "linear" and nodes[site.node].args[0].name == site.source for site in found.values())


def test_one_weight_may_serve_twice(graph: Graph) -> None:
    once, twice = (next(s for s in sites(graph) if s.name == name) for name in ("block.shared", "block.shared#2"))
    assert once.weight == twice.weight and once.node != twice.node


def test_sites_that_read_one_value_have_one_source(graph: Graph) -> None:
    source = {site.name: site.source for site in sites(graph)}
    assert source["block.q"] == source["block.k"]
    assert len({source[name] for name in ("enter", "block.q", "block.text", "block.shared", "leave")}) == 5


def test_the_ends_are_what_the_latent_meets_first_and_last(graph: Graph) -> None:
    assert ends(graph) == {"enter", "leave"}


def test_without_a_latent_every_input_enters() -> None:
    text = Input("text", (BATCH, 5, 8), torch.float32, Kind.PROMPT)
    graph = graph_of(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), (text,))
    assert ends(graph) == {"0", "4"}


def test_convolutions() -> None:
    graph = graph_of(_Picture(), (Input("latent", (BATCH, 4, 6, 6), torch.float32, Kind.LATENT),))
    first, second = sites(graph)
    assert (first.kind, first.shape, first.inputs) == ("conv", (8, 4, 3, 3), 4)
    assert (second.kind, second.inputs, second.parameters) == ("conv", 4, 24)
    assert ends(graph) == {"first", "second"}


def test_names_and_axes() -> None:
    assert site_name("model.blocks.0.to_q.weight") == "blocks.0.to_q" and site_name("proj") == "proj"
    assert (channel_axis("linear"), channel_axis("conv")) == (-1, 1)
