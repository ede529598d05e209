"""Units as functions: with real weights they are the model, with decided ones the quantized model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from dexport.passes.graph import Graph, run
from dexport.passes.quantization.reconstruction import Trial
from dexport.passes.quantization.scratch import Scratch
from dexport.passes.quantization.sites import sites
from dexport.passes.quantization.unit import ROW, Computation, Indexed, UnitFunction, joined, part_key, scale_names
from dexport.passes.quantization.unit_site import real_weights
from dexport.passes.quantization.units import Span, spans
from tests.passes.graphs import LATENT, example, graph_of
from tests.passes.quantization.unit_graphs import decided, static


class Branching(nn.Module):
    """A block with two outputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 4)])])
        self.proj_a, self.proj_b = nn.Linear(8, 4), nn.Linear(4, 4)

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        first, second = self.blocks[0]  # type: ignore[misc]
        hidden = first(latent).tanh()
        narrow = second(hidden)
        return self.proj_a(hidden) + self.proj_b(narrow)


def _unit(folder: Path, plain: bool = False) -> tuple[Graph, Span, UnitFunction, dict[str, torch.Tensor]]:
    graph = graph_of(Branching())
    (span,) = spans(graph, "block", {"blocks.0.0"})
    values = {} if plain else decided(graph, Scratch(folder), activations=static(0.02))
    latents = example((LATENT,), 5)["latent"]
    place = {graph.placeholders()["latent"]: Indexed(latents, torch.arange(5))}
    sizes = dict(zip(span.outputs, (2.0, 4.0), strict=True))
    return graph, span, UnitFunction(graph, span, values, place, torch.zeros(5, dtype=torch.int64), sizes), {ROW: torch.arange(5)}


def _values(graph: Graph) -> dict[str, torch.Tensor]:
    """Every value of the graph, by node."""
    seen: dict[str, torch.Tensor] = {}
    run(graph, example((LATENT,), 5), lambda node, value: seen.update({node.name: value}))
    return seen


def test_without_quantized_sites_it_is_the_model(tmp_path: Path) -> None:
    graph, span, unit, inputs = _unit(tmp_path, plain=True)
    found, wanted = unit(inputs, Trial({}, {}, lambda exact, rounded: rounded)), _values(graph)
    assert len(span.outputs) == 2
    torch.testing.assert_close(found.output, joined([wanted[node.name] for node in span.outputs], [2.0, 4.0]))
    assert found.output.shape == (5, 6 * 8 + 6 * 4)
    assert set(found.inner) == {"blocks.0.0", "blocks.0.1"}
    torch.testing.assert_close(found.inner["blocks.0.0"], wanted[span.sites[0].node])


def test_exact_weights_and_nothing_rounded_are_the_model(tmp_path: Path) -> None:
    graph, span, unit, inputs = _unit(tmp_path)
    values = decided(graph, Scratch(tmp_path), activations=static(0.02))
    weights = {part_key(s.name, 0): real_weights(graph.weights[s.weight], values[s.name])[0] for s in span.sites}
    wanted = _values(graph)
    found = unit(inputs, Trial(weights, {}, lambda exact, rounded: exact))
    torch.testing.assert_close(found.output, joined([wanted[node.name] for node in span.outputs], [2.0, 4.0]))


def test_trial_weights_and_scales_count_and_have_gradients(tmp_path: Path) -> None:
    _, span, unit, inputs = _unit(tmp_path)
    key = part_key(span.sites[0].name, 0)
    plain = unit(inputs, Trial({}, {}, lambda exact, rounded: rounded)).output
    weight = torch.zeros(8, 8, requires_grad=True)
    scale = torch.tensor(0.2, requires_grad=True)
    changed = unit(inputs, Trial({key: weight}, {key: scale}, lambda exact, rounded: rounded)).output
    assert not torch.allclose(plain, changed)
    changed.square().sum().backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None and weight.grad.abs().sum() > 0
    coarse = unit(inputs, Trial({}, {key: scale}, lambda exact, rounded: rounded)).output
    (gradient,) = torch.autograd.grad(coarse.square().sum(), scale)
    assert gradient.abs() > 0 and not torch.allclose(coarse, plain)


def test_a_scale_that_sites_share_has_one_name(tmp_path: Path) -> None:
    graph = graph_of(Branching())
    (span,) = spans(graph, "block", {"blocks.0.0"})
    shared = decided(graph, Scratch(tmp_path), activations=static(0.02))
    apart = shared | {"blocks.0.1": decided(graph, Scratch(tmp_path), activations=static(0.02))["blocks.0.1"]}
    assert scale_names(span, shared) == {"blocks.0.0/0": "blocks.0.0/0", "blocks.0.1/0": "blocks.0.0/0"}
    assert scale_names(span, apart) == {"blocks.0.0/0": "blocks.0.0/0", "blocks.0.1/0": "blocks.0.1/0"}
    assert scale_names(span, decided(graph, Scratch(tmp_path))) == {}


def test_some_rows_are_those_rows(tmp_path: Path) -> None:
    _, _, unit, inputs = _unit(tmp_path)
    trial = Trial({}, {}, lambda exact, rounded: rounded)
    torch.testing.assert_close(unit({ROW: torch.tensor([3, 1])}, trial).output, unit(inputs, trial).output[[3, 1]])


def test_indexed_values() -> None:
    found = Indexed(torch.tensor([[1.0], [2.0]]), torch.tensor([1, 1, 0]))
    assert found.rows(torch.tensor([2, 0])).tolist() == [[1.0], [2.0]]
    assert Indexed(torch.tensor([5.0]), None).rows(torch.tensor([2, 0])).tolist() == [5.0]
    pieces = Indexed([torch.tensor([1.0, 2]), torch.tensor([3.0, 4])], torch.tensor([1, 0])).rows(torch.tensor([0]))
    assert [piece.tolist() for piece in pieces] == [[2.0], [4.0]]


@pytest.mark.parametrize("kept", [True, False])
def test_weights_are_read_once_only_if_kept(kept: bool) -> None:
    from dataclasses import replace

    graph, count = graph_of(Branching()), 0
    (site, *_) = sites(graph)
    original = graph.weights[site.weight]

    def load() -> torch.Tensor:
        nonlocal count
        count += 1
        return original.load()

    graph = replace(graph, weights={**graph.weights, site.weight: replace(original, load=load)})
    nodes = [node for node in graph.module.graph.nodes if node.name == site.node]
    computation = Computation(graph, nodes, kept)
    latent = graph.placeholders()["latent"]
    for batch in (2, 3):
        x = example((LATENT,), batch)["latent"]
        found = computation.run({latent: x}, batch, {}, nodes)
        assert found[nodes[0]].shape == (batch, 6, 8)
    assert count == (1 if kept else 2)
