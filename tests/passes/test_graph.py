"""Graphs run in PyTorch with streamed weights, are never changed in place, and know their shapes."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import fx, nn

from dexport.passes.graph import Graph, Weight, call_nodes, copied_nodes, dims, is_tensor, materialise, run, value, with_nodes
from tests.passes.graphs import LATENT, example, graph_of, operations


class Model(nn.Module):
    """Two layers of which one is used twice, and one that is not used."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.idle = nn.Linear(8, 8), nn.Linear(8, 4), nn.Linear(8, 8)
        self.table = nn.Buffer(torch.randn(6, 8))

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(self.first(latent) + self.table))  # type: ignore[no-any-return]


def _counting(graph: Graph, reads: list[str]) -> Graph:
    """The same graph that notes every read of a weight."""

    def noted(name: str, weight: Weight) -> Weight:
        def load() -> torch.Tensor:
            reads.append(name)
            return weight.load()

        return replace(weight, load=load)

    return replace(graph, weights={name: noted(name, weight) for name, weight in graph.weights.items()})


def test_a_graph_gives_what_the_module_gives() -> None:
    model = Model()
    graph = graph_of(model)
    for batch in (1, 4):
        inputs = example([LATENT], batch)
        torch.testing.assert_close(run(graph, inputs)["out"], model(inputs["latent"]))


def test_weights_are_read_when_a_node_needs_them_and_kept_by_materialise() -> None:
    reads: list[str] = []
    graph = _counting(graph_of(Model()), reads)
    assert reads == []
    inputs = example([LATENT], 2)
    run(graph, inputs)
    used = {"first.weight", "first.bias", "second.weight", "second.bias"}
    assert set(reads) == set(graph.used_weights()) == used
    reads.clear()
    loaded = materialise(graph)
    assert sorted(reads) == sorted(used)
    assert torch.equal(run(loaded, inputs)["out"], run(loaded, inputs)["out"])
    assert len(reads) == len(used)


def test_a_weight_is_not_read_before_the_layer_in_front_has_run() -> None:
    events: list[str] = []
    graph = _counting(graph_of(Model()), events)
    run(graph, example([LATENT], 2), lambda node, _: events.append(str(node.target)))
    read, ran = events.index("second.weight"), events.index("aten.linear.default")
    assert read > ran
    assert events.count("first.weight") == 2  # read once, and shown once, though two nodes need it


def test_watch_sees_every_value() -> None:
    seen: dict[str, torch.Tensor] = {}
    graph = graph_of(Model())
    inputs = example([LATENT], 2)
    result = run(graph, inputs, lambda node, found: seen.update({node.name: found}))
    assert set(seen) == {node.name for node in graph.module.graph.nodes}
    assert torch.equal(seen["linear_2"], result["out"])
    assert torch.equal(seen["latent"], inputs["latent"])


def test_sizes_are_counted() -> None:
    graph = graph_of(Model())
    assert graph.parameter_count() == 8 * 8 + 8 * 4
    assert graph.weights["second.weight"].nbytes == 4 * 8 * 4
    assert set(graph.placeholders()) == {"latent"}


def test_an_edit_leaves_the_original_alone() -> None:
    graph = graph_of(Model())
    before = operations(graph)
    nodes = copied_nodes(graph.module)
    last = next(n for n in nodes.nodes if n.op == "output")
    last.args = ((next(n for n in nodes.nodes if n.op == "placeholder"),),)
    edited = with_nodes(graph, nodes, name="passed through")
    assert (operations(edited), edited.name, edited.used_weights()) == ([], "passed through", {})
    assert operations(graph) == before and graph.name == "model"


def test_fake_values_tell_shapes() -> None:
    graph = graph_of(Model())
    assert [dims(value(node)) for node in call_nodes(graph) if is_tensor(node)][-1] == ("batch", 6, 4)
    doubled: fx.Node = next(n for n in graph.module.graph.nodes if n.op == "placeholder")
    assert dims(torch.cat([value(doubled)] * 2)) == ("2*s0",) + (6, 8) or dims(torch.cat([value(doubled)] * 2))[0] != "batch"
