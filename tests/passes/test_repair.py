"""Every repair: the fault that it removes, the values that it keeps, and graphs that it leaves alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from dexport.exporter.capture import Input
from dexport.passes import repair as repairs
from dexport.passes.graph import BATCH, Graph, Kind, run
from dexport.passes.repair import repair
from tests.passes.graphs import LATENT, example, graph_of, operations

Body = Callable[[torch.Tensor], torch.Tensor]
MASK = Input("mask", (BATCH, 6), torch.float32, Kind.PROMPT)


class Calls(nn.Module):
    """A function as a module."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.body = body

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        return self.body(latent)


def _in_place(x: torch.Tensor) -> torch.Tensor:
    out = torch.zeros_like(x)
    out[...] = x * 2
    return out


CASES: dict[str, tuple[Callable[[Graph], Graph], Body, str, list[str]]] = {
    "view": (repairs.reshape_for_view, lambda x: x.view(-1, 48), "view.default", ["reshape.default"]),
    "clone": (repairs.drop_copies, lambda x: x.sin().clone(), "clone.default", ["sin.default"]),
    "dropout": (repairs.drop_copies, lambda x: nn.functional.dropout(x.sin(), 0.5, False), "clone.default", ["sin.default"]),
    "type_as": (repairs.cast_for_type_as, lambda x: x.double().type_as(x), "type_as.default", ["_to_copy.default", "_to_copy.default"]),
    "copy": (repairs.value_for_copy, _in_place, "copy.default", ["mul.Tensor"]),
    "same type": (repairs.drop_identities, lambda x: x.sin().to(torch.float32, copy=True), "_to_copy.default", ["sin.default"]),
    "squeeze of 6": (repairs.drop_identities, lambda x: x.sin().squeeze(1), "squeeze.dim", ["sin.default"]),
    "times 1": (repairs.drop_identities, lambda x: x.sin() * 1, "mul.Tensor", ["sin.default"]),
    "over 1": (repairs.drop_identities, lambda x: x.sin() / 1.0, "div.Tensor", ["sin.default"]),
    "same size": (repairs.drop_identities, lambda x: x.sin().expand(-1, 6, 8), "expand.default", ["sin.default"]),
    "repeat": (
        repairs.expand_for_repeat_interleave,
        lambda x: x.repeat_interleave(3, 0),
        "repeat_interleave.self_int",
        ["unsqueeze.default", "expand.default", "flatten.using_ints"],
    ),
    "repeat over heads": (
        repairs.expand_for_repeat_interleave,
        lambda x: x.repeat_interleave(3, 0).view(x.shape[0], 3, 6, 8),
        "repeat_interleave.self_int",
        ["unsqueeze.default", "expand.default", "reshape.default"],
    ),
    "einsum": (repairs.permute_for_einsum, lambda x: torch.einsum("nab->nba", x), "einsum.default", ["permute.default"]),
    "chunk": (repairs.slice_for_split, lambda x: x.chunk(2, -1)[1].sin(), "split.Tensor", ["slice.Tensor", "sin.default"]),
    "split": (
        repairs.slice_for_split,
        lambda x: x.split([1, 3, 2], 1)[1].sin(),
        "split_with_sizes.default",
        ["slice.Tensor", "sin.default"],
    ),
    "unbind": (repairs.slice_for_split, lambda x: x.unbind(1)[2].sin(), "unbind.int", ["select.int", "sin.default"]),
}


@pytest.mark.parametrize(("single", "body", "fault", "wanted"), CASES.values(), ids=CASES.keys())
def test_a_repair_removes_its_fault_and_keeps_the_values(
    single: Callable[[Graph], Graph], body: Body, fault: str, wanted: list[str]
) -> None:
    before = graph_of(Calls(body), repaired=False)
    assert fault in operations(before)
    assert fault not in operations(single(before)) or fault in wanted
    after = repair(before)
    assert operations(after) == wanted
    assert fault in operations(before), "the input of a pass stays as it was"
    for batch in (1, 3):
        inputs = example([LATENT], batch)
        for graph in (single(before), after):
            result = run(graph, inputs)["out"]
            assert torch.equal(result, body(inputs["latent"])) and result.shape == body(inputs["latent"]).shape


def test_assertions_go() -> None:
    before = graph_of(Calls(lambda x: x.half().float()), repaired=False)
    nodes = repairs.copied_nodes(before.module)
    first = next(n for n in nodes.nodes if n.op == "call_function")
    with nodes.inserting_before(first):
        nodes.call_function(torch.ops.aten._assert_tensor_metadata.default, (first.args[0],))
    asserting = repairs.with_nodes(before, nodes)
    assert "_assert_tensor_metadata.default" in operations(asserting) or "_assert_tensor_metadata.default" in operations(before)
    assert "_assert_tensor_metadata.default" not in operations(repairs.drop_assertions(asserting))


LEFT_ALONE: dict[str, tuple[Body, str]] = {
    "a copy that broadcasts": (lambda x: torch.zeros_like(x).copy_(x[:, :1]), "copy.default"),
    "a narrowing cast": (lambda x: x.half(), "_to_copy.default"),
    "a squeeze of 1": (lambda x: x[:, :1].squeeze(1), "squeeze.dim"),
    "times 2": (lambda x: x * 2, "mul.Tensor"),
    "times one tensor": (lambda x: x * torch.ones(()), "mul.Tensor"),
    "a repetition along another axis": (lambda x: x.repeat_interleave(2, 1), "repeat_interleave.self_int"),
    "a sum": (lambda x: torch.einsum("nab->na", x), "einsum.default"),
    "a diagonal": (lambda x: torch.einsum("naa->na", x[:, :, :6]), "einsum.default"),
}


@pytest.mark.parametrize(("body", "kept"), LEFT_ALONE.values(), ids=LEFT_ALONE.keys())
def test_what_only_looks_like_a_fault_stays(body: Body, kept: str) -> None:
    graph = repair(graph_of(Calls(body), repaired=False))
    assert kept in operations(graph)
    inputs = example([LATENT], 2)
    assert torch.allclose(run(graph, inputs)["out"].float(), body(inputs["latent"]).float(), atol=1e-6)


def test_a_sound_graph_stays_as_it_is() -> None:
    graph = graph_of(nn.Sequential(nn.Linear(8, 8), nn.SiLU()))
    for single in (*(case[0] for case in CASES.values()), repairs.drop_assertions, repairs.stack_for_slice_scatter, repair):
        assert operations(single(graph)) == operations(graph) == ["linear.default", "silu.default"]


class ByBatch(nn.Module):
    """Reshapes to sizes that name the batch, or count it into another axis."""

    def forward(self, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        batch = latent.shape[0]
        return latent.reshape(batch, 6, 2, -1), latent.reshape(batch * 2, 3, 8)


def test_a_shape_with_one_unknown_size_is_a_constant() -> None:
    graph = graph_of(ByBatch(), outputs=("plain", "counted"))
    shapes = [n.args[1] for n in graph.module.graph.nodes if n.target is torch.ops.aten.reshape.default]
    assert shapes == [[-1, 6, 2, 4], [-1, 3, 8]]
    inputs = example([LATENT], 3)
    assert [tuple(t.shape) for t in run(graph, inputs).values()] == [(3, 6, 2, 4), (6, 3, 8)]
