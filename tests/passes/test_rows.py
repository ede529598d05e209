"""Every rule for rows: where it says that rows are apart, they are; and a case that it refuses."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import fx, nn

from dexport.exporter.capture import Input
from dexport.passes.graph import BATCH, Graph, Kind, call_node, copied_nodes, with_nodes
from dexport.passes.rows import _EQUAL_ROWS, _RULES, Rows, rows
from tests.passes.graphs import TIMESTEP, graph_of, operations

aten = torch.ops.aten
Arguments = Callable[[SimpleNamespace], tuple[Any, ...]]
_BATCH = 2

SHAPES: dict[str, tuple[int | str, ...]] = {
    "x": (BATCH, 5, 8),
    "y": (BATCH, 8),
    "v": (BATCH,),
    "k": (BATCH, 4, 3),
    "q": (BATCH, 2, 5, 8),
    "s": (BATCH, 1, 8),
    "i": (BATCH, 5),
    "k2": (BATCH, 4, 3, 3),
    "k3": (BATCH, 1, 2, 2, 2),
    "p2": (BATCH, 4, 6, 6),
    "p3": (BATCH, 1, 4, 4, 4),
}
CONSTANTS: dict[str, torch.Tensor] = {
    name: torch.randn(shape, generator=torch.Generator().manual_seed(1))
    for name, shape in {
        "w": (3, 8),
        "m": (1, 8, 8),
        "c2": (3, _BATCH),
        "c1": (1, 4, 8),
        "w1": (4, 5, 3),
        "w2": (4, 4, 3, 3),
        "image": (1, 4, 6, 6),
        "volume": (1, 1, 4, 4, 4),
        "g": (1, _BATCH, 8),
        "q1": (3, 2, 5, 8),
        "channels": (4, _BATCH, 1, 1),
    }.items()
}

CASES: list[tuple[Any, Arguments, Arguments | None]] = [
    (aten.linear.default, lambda a: (a.x, a.w), lambda a: (a.w, a.y)),
    (aten.layer_norm.default, lambda a: (a.x, [8]), lambda a: (a.v, [_BATCH])),
    (aten.rms_norm.default, lambda a: (a.x, [8]), lambda a: (a.v, [_BATCH])),
    (aten.group_norm.default, lambda a: (a.x, 5), lambda a: (a.g, 1, a.v)),
    (aten.conv1d.default, lambda a: (a.x, a.w1), lambda a: (a.c1, a.k)),
    (aten.conv2d.default, lambda a: (a.p2, a.w2), lambda a: (a.image, a.k2)),
    (aten.conv3d.default, lambda a: (a.p3, a.volume), lambda a: (a.volume, a.k3)),
    (aten.embedding.default, lambda a: (a.w, a.i), lambda a: (a.y, torch.tensor([0, 1, 0]))),
    (aten.scaled_dot_product_attention.default, lambda a: (a.q, a.q, a.q), lambda a: (a.q1, a.q1, a.q1, a.mask)),
    (aten.matmul.default, lambda a: (a.x, a.m), lambda a: (a.c2, a.y)),
    (aten.bmm.default, lambda a: (a.k, a.k_turned), None),  # always a batch of matrices
    (aten._softmax.default, lambda a: (a.x, -1, False), lambda a: (a.x, 0, False)),
    (aten.softmax.int, lambda a: (a.x, 2), lambda a: (a.x, -3)),
    (aten.mean.dim, lambda a: (a.x, [1, 2]), lambda a: (a.x, [0], True)),
    (aten.sum.dim_IntList, lambda a: (a.x, [-1]), lambda a: (a.x, [0, 1], True)),
    (aten.cat.default, lambda a: ([a.x, a.s], 1), lambda a: ([a.x, a.x],)),
    (aten.stack.default, lambda a: ([a.x, a.x], 1), lambda a: ([a.x, a.x],)),
    (aten.split.Tensor, lambda a: (a.x, 2, 1), lambda a: (a.x, 1)),
    (aten.split_with_sizes.default, lambda a: (a.x, [2, 3], 1), lambda a: (a.x, [1, _BATCH - 1])),
    (aten.chunk.default, lambda a: (a.x, 2, -1), lambda a: (a.x, 2)),
    (aten.unbind.int, lambda a: (a.x, 1), lambda a: (a.x,)),
    (aten.select.int, lambda a: (a.x, 1, 0), lambda a: (a.x, 0, 0)),
    (aten.slice.Tensor, lambda a: (a.x, 1, 0, 2), lambda a: (a.x, 0, 0, 1)),
    (aten.unsqueeze.default, lambda a: (a.x, -1), lambda a: (a.x, 0)),
    (aten.squeeze.dim, lambda a: (a.s, 1), lambda a: (a.s, 0)),
    (aten.squeeze.dims, lambda a: (a.s, [1]), lambda a: (a.s, [0, 1])),
    (aten.transpose.int, lambda a: (a.x, 1, 2), lambda a: (a.x, 0, 1)),
    (aten.permute.default, lambda a: (a.x, [0, 2, 1]), lambda a: (a.x, [1, 0, 2])),
    (aten.reshape.default, lambda a: (a.x, [-1, 40]), lambda a: (a.x, [5, -1])),
    (aten.expand.default, lambda a: (a.s, [-1, 5, 8]), lambda a: (a.y, [3, -1, -1])),
    (aten.flatten.using_ints, lambda a: (a.x, 1), lambda a: (a.x, 0, 1)),
    (aten._to_copy.default, lambda a: (a.x,), None),  # never changes a shape
    (aten.add.Tensor, lambda a: (a.x, a.s), lambda a: (a.c2, a.v)),
    (aten.conv2d.default, lambda a: (a.p2, a.w2), lambda a: (a.p2_without_batch, a.channels)),
]


class Everything(nn.Module):
    """Reads all inputs."""

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        return sum(t.sum() for t in tensors)  # type: ignore[return-value]


@pytest.fixture(scope="module")
def entered() -> Graph:
    inputs = [Input(n, shape, torch.int64 if n == "i" else torch.float32, Kind.PROMPT) for n, shape in SHAPES.items()]
    return graph_of(Everything(), inputs)


def _derived(a: SimpleNamespace, call: Callable[..., Any]) -> SimpleNamespace:
    a.k_turned = call(aten.transpose.int, a.k, 1, 2)
    a.mask = call(aten.reshape.default, call(aten.slice.Tensor, call(aten.reshape.default, a.x, [-1, 40]), 1, 0, 25), [-1, 5, 5])
    a.p2_without_batch = call(aten.select.int, a.p2, 1, 0)
    return a


def _state(entered: Graph, target: Any, arguments: Arguments) -> Rows:
    """What the analysis says of a call."""
    nodes = copied_nodes(entered.module)
    placeholders = [n for n in nodes.nodes if n.op == "placeholder"]
    module = entered.module
    values = dict(zip(SHAPES, placeholders, strict=True))
    with nodes.inserting_after(placeholders[-1]):
        for name, tensor in CONSTANTS.items():
            setattr(module, name, nn.Buffer(tensor))
            values[name] = nodes.get_attr(name)
            values[name].meta["val"] = values["x"].meta["val"].new_empty(tensor.shape)
    result = next(n for n in nodes.nodes if n.op == "output")
    with nodes.inserting_before(result):
        a = _derived(SimpleNamespace(**values), lambda op, *args: call_node(nodes, op, *args))
        node = call_node(nodes, target, *_constants_as_nodes(nodes, module, values["x"], arguments(a)))
    result.args = ((node,),)
    graph = with_nodes(entered, nodes)
    return rows(graph)[next(n for n in graph.module.graph.nodes if n.op == "output").args[0][0]]  # type: ignore[index]


def _constants_as_nodes(nodes: fx.Graph, module: nn.Module, like: fx.Node, arguments: tuple[Any, ...]) -> list[Any]:
    found = []
    for index, argument in enumerate(arguments):
        if isinstance(argument, torch.Tensor):
            setattr(module, f"constant_{index}", nn.Buffer(argument))
            node = nodes.get_attr(f"constant_{index}")
            node.meta["val"] = like.meta["val"].new_empty(argument.shape, dtype=argument.dtype)
            argument = node
        found.append(argument)
    return found


def _rows_are_apart(target: Any, arguments: Arguments) -> bool:
    """Whether changing row 0 of every input changes nothing but row 0 of the result."""

    def result(seed: int) -> list[torch.Tensor]:
        first, rest = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(0)
        values = {}
        for name, shape in SHAPES.items():
            sizes = [s for s in shape[1:] if isinstance(s, int)]
            tensor = torch.stack([torch.randn(sizes, generator=g) for g in (first, *[rest] * (_BATCH - 1))])
            values[name] = (tensor * 10).long() % 3 if name == "i" else tensor
        a = _derived(SimpleNamespace(**values, **CONSTANTS), lambda op, *args: op(*args))
        found = target(*arguments(a))
        return list(found) if isinstance(found, list | tuple) else [found]

    before, after = result(0), result(1)
    same_length = all(t.dim() > 0 and len(t) == _BATCH for t in before)
    return same_length and all(torch.equal(b[1:], a[1:]) for b, a in zip(before, after, strict=True))


@pytest.mark.parametrize(("target", "apart", "mixing"), CASES, ids=[str(c[0]) for c in CASES])
def test_a_rule_accepts_rows_that_are_apart_and_refuses_others(
    entered: Graph, target: Any, apart: Arguments, mixing: Arguments | None
) -> None:
    assert _rows_are_apart(target, apart)
    assert _state(entered, target, apart) is Rows.ROWS
    if mixing is not None:
        assert not _rows_are_apart(target, mixing) or "squeeze" in str(target)  # which would squeeze a batch of one away
        assert _state(entered, target, mixing) is Rows.MIXED


def test_every_rule_has_a_case() -> None:
    assert {case[0] for case in CASES} >= set(_RULES)


class Expands(nn.Module):
    """One timestep, before and after its expansion."""

    def forward(self, timestep: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
        batch = v.shape[0]
        table = torch.arange(4.0)
        early = timestep.expand(batch)[:, None] * table
        late = (timestep[:, None] * table).reshape(1, 2, 2).expand(batch, 2, 2)
        numbered = torch.arange(batch) * timestep
        return early, late, numbered, timestep * table, timestep[None], torch.zeros(batch, 3), torch.arange(batch)


def test_one_timestep_is_one_row() -> None:
    names = ("early", "late", "numbered", "spread", "turned", "zeros", "arange")
    graph = graph_of(Expands(), (TIMESTEP, Input("v", (BATCH,), torch.float32, Kind.PROMPT)), names)
    result = next(n for n in graph.module.graph.nodes if n.op == "output").args[0]
    states = rows(graph)
    found = {name: states[node] for name, node in zip(names, result, strict=True)}  # type: ignore[arg-type, index]
    apart, mixed = Rows.ROWS, Rows.MIXED
    assert found == {
        "early": apart,
        "late": apart,
        "numbered": mixed,
        "spread": mixed,
        "turned": mixed,
        "zeros": apart,
        "arange": mixed,
    }
    assert "full.default" in operations(graph) or "zeros.default" in operations(graph)
    assert {aten.full.default, aten.zeros.default, aten.expand.default} <= _EQUAL_ROWS
