"""Hoisting: everything that does not depend on the latent leaves the denoising loop.

    depends on          becomes                          computed
    nothing             constant (passes/fold.py)        at build
    step                table, one row per step          at build, all steps in one call
    prompt              input of the loop                once per prompt, by the prompt prelude
    prompt and step     packed input of the loop         once per prompt for all steps in one call, by the schedule prelude
    latent              stays                            every step

What is moved is a cut through the graph. A value on the cut is read by the loop at every step, so the cut lies where reading is cheap:

1. A view (reshape, split, expand, ...) costs nothing in the loop: its source is moved instead, unless the views together are smaller.
2. A pointwise result that is larger than what it is computed from (weights included) is recomputed in the loop.
3. A value whose rows are not proven independent (passes/rows.py) stays, and the report says so.

All step values of one dtype enter the loop as one packed row, split inside.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx
from torch._dynamo.source import ConstantSource
from torch.fx.experimental.symbolic_shapes import DimDynamic, StatelessSymbolicContext

from dexport.passes.dependence import NOTHING, Kinds, dependence, is_size
from dexport.passes.graph import BATCH, STEPS, Dim, Graph, Kind, Port, call_node, compute_value, dims, is_tensor, value, with_nodes
from dexport.passes.rows import Rows, rows

aten = torch.ops.aten
STEP_VALUES, SCHEDULE_VALUES = "step_values", "schedule_values"
_EXAMPLE_STEPS = 7  # what the symbolic number of timesteps stands for; 0 and 1 would be special, and small sizes may be another axis's
_VIEWS = {
    aten.reshape.default,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.expand.default,
    aten.slice.Tensor,
    aten.select.int,
    aten.flatten.using_ints,
}


@dataclass(frozen=True)
class Moved:
    """A value that left the loop: node name, what it depends on, its shape."""

    node: str
    kinds: Kinds
    shape: tuple[Dim, ...]


@dataclass(frozen=True)
class Kept:
    """A latent-free value that the loop still computes, and why."""

    node: str
    reason: str


@dataclass(frozen=True)
class HoistReport:
    """What moved and why; parameter counts are elements of matrices and kernels."""

    moved: tuple[Moved, ...]
    kept: tuple[Kept, ...]
    parameters: int
    loop_parameters: int


@dataclass(frozen=True)
class Hoisted:
    """The pieces of a split denoiser.

    Attributes:
        loop: inputs are the latent ones, then `step_values` [1, W], `schedule_values` ["batch", V], then one per prompt value.
        table: timestep ["steps"] -> step_values ["steps", W]; evaluated at build, or None.
        schedule: timestep ["steps"], prompt inputs -> schedule_values ["steps*batch", V], step first, or None.
        prompt: prompt inputs -> prompt values, or None.
    """

    loop: Graph
    table: Graph | None
    schedule: Graph | None
    prompt: Graph | None
    report: HoistReport


def hoist(graph: Graph) -> Hoisted:
    """Splits a captured denoiser into its loop and its preludes."""
    kinds, states = dependence(graph), rows(graph)
    cut, kept = _cut(graph, kinds, states)
    by_kind: dict[Kinds, list[fx.Node]] = {}
    for node in cut:
        by_kind.setdefault(kinds[node], []).append(node)
    steps = by_kind.get(frozenset([Kind.STEP]), [])
    mixed = by_kind.get(frozenset([Kind.STEP, Kind.PROMPT]), [])
    prompts = by_kind.get(frozenset([Kind.PROMPT]), [])
    loop = _loop(graph, steps, mixed, prompts)
    report = HoistReport(
        moved=tuple(Moved(n.name, kinds[n], dims(value(n))) for n in cut),
        kept=tuple(kept),
        parameters=graph.parameter_count(),
        loop_parameters=loop.parameter_count(),
    )
    return Hoisted(
        loop=loop,
        table=_table(graph, steps) if steps else None,
        schedule=_schedule(graph, mixed) if mixed else None,
        prompt=_prelude(graph, prompts) if any(n.op != "placeholder" for n in prompts) else None,
        report=report,
    )


def _cut(graph: Graph, kinds: dict[fx.Node, Kinds], states: dict[fx.Node, Rows]) -> tuple[list[fx.Node], list[Kept]]:
    """The values to move, in graph order, and those that rule 2 or 3 keeps in the loop."""
    kept: dict[fx.Node, str] = {}
    frontier = {n for n in graph.module.graph.nodes if _wanted(n, kinds)}
    changed = True
    while changed:
        changed = False
        for node in sorted(frontier):
            reason = _keep_reason(node, frontier, kinds, states)
            if reason is None:
                continue
            if reason != "view":
                kept[node] = reason
            frontier.discard(node)
            frontier |= {s for s in _tensor_sources(node) if kinds[s] != NOTHING}
            changed = True
    order = list(graph.module.graph.nodes)
    return sorted(frontier, key=order.index), [Kept(n.name, kept[n]) for n in sorted(kept, key=order.index)]


def _wanted(node: fx.Node, kinds: dict[fx.Node, Kinds]) -> bool:
    """A latent-free, non-constant tensor that something in the loop (or the output) reads."""
    if node.op == "output" or kinds[node] == NOTHING or Kind.LATENT in kinds[node] or not is_tensor(node):
        return False
    return any((u.op == "output" or Kind.LATENT in kinds[u]) and not is_size(u) for u in node.users)


def _keep_reason(node: fx.Node, frontier: set[fx.Node], kinds: dict[fx.Node, Kinds], states: dict[fx.Node, Rows]) -> str | None:
    if node.op == "placeholder":
        return None
    if states[node] is Rows.MIXED:
        return "its rows are not proven independent"
    sources = _tensor_sources(node)
    if node.target in _VIEWS:
        root = _root(node)
        together = sum(_row_bytes(n) for n in frontier if n is root or (n.target in _VIEWS and _root(n) is root))
        return "view" if kinds[root] != NOTHING and _row_bytes(root) <= together else None
    if torch.Tag.pointwise in getattr(node.target, "tags", ()):
        needed = sum(_row_bytes(s) for s in sources if s not in frontier)
        if _row_bytes(node) > needed:
            return f"recomputed: {_row_bytes(node)} bytes from {needed}"
    return None


def _tensor_sources(node: fx.Node) -> list[fx.Node]:
    return [s for s in node.all_input_nodes if not is_size(s)]


def _root(node: fx.Node) -> fx.Node:
    while node.target in _VIEWS and node.op == "call_function":
        node = node.all_input_nodes[0]
    return node


def _row_bytes(node: fx.Node) -> int:
    """Bytes of one row: the batch counts as 1."""
    tensor = node.meta.get("val")
    if not isinstance(tensor, torch.Tensor):
        return 0
    total = tensor.dtype.itemsize
    for size in tensor.shape:
        total *= size if isinstance(size, int) else 1
    return total


def _loop(graph: Graph, steps: list[fx.Node], mixed: list[fx.Node], prompts: list[fx.Node]) -> Graph:
    """The loop: the captured graph in which every node of the cut is a new input or a piece of a packed one."""
    nodes = fx.Graph()
    new: dict[fx.Node, fx.Node] = {}
    entering = graph.placeholders()
    ports = [p for p in graph.inputs if Kind.LATENT in p.kinds]
    for port in ports:
        new[entering[port.name]] = nodes.node_copy(entering[port.name])
    latent = new[entering[ports[0].name]]
    packs = [
        (name, dtype, members)
        for name, cut in ((STEP_VALUES, steps), (SCHEDULE_VALUES, mixed))
        for dtype, members in _by_dtype(cut).items()
    ]
    packed = [_packed_input(nodes, latent, name, dtype, members) for name, dtype, members in packs]
    ports += [port for port, _ in packed]
    for node in prompts:
        port = _prompt_port(graph, node)
        new[node] = _placeholder(nodes, port, value(node))
        ports.append(port)
    batch = call_node(nodes, aten.sym_size.int, latent, 0)
    for (_, _, members), (_, placeholder) in zip(packs, packed):
        new.update(_split(nodes, members, placeholder, batch))
    results = _copy(nodes, graph, _results(graph), new, batch)
    nodes.output(tuple(results))
    return with_nodes(graph, nodes, inputs=tuple(ports))


def _packed_input(nodes: fx.Graph, latent: fx.Node, name: str, dtype: torch.dtype, members: list[fx.Node]) -> tuple[Port, fx.Node]:
    width = sum(_row_width(n) for n in members)
    shape: tuple[Dim, ...] = (1 if name == STEP_VALUES else BATCH, width)
    port = Port(_packed_name(name, dtype), dtype, shape, frozenset([Kind.STEP] if name == STEP_VALUES else [Kind.STEP, Kind.PROMPT]))
    rows_now = 1 if name == STEP_VALUES else value(latent).shape[0]
    return port, _placeholder(nodes, port, value(latent).new_empty((rows_now, width), dtype=dtype))


def _split(nodes: fx.Graph, members: list[fx.Node], packed: fx.Node, batch: fx.Node) -> dict[fx.Node, fx.Node]:
    """The pieces of a packed input in the shapes of `members`; a step row is expanded over the batch once, before it is split."""
    wide = packed
    if value(packed).shape[0] == 1:
        wide = call_node(nodes, aten.expand.default, packed, [batch, -1])
    pieces, start = {}, 0
    for node in members:
        has_batch = dims(value(node))[:1] == (BATCH,)
        end = start + _row_width(node)
        piece = call_node(nodes, aten.slice.Tensor, wide if has_batch else packed, 1, start, end)
        rest = [int(d) for d in value(node).shape[1:]]
        pieces[node] = call_node(nodes, aten.reshape.default, piece, [batch if has_batch else 1, *rest])
        start = end
    return pieces


def _table(graph: Graph, steps: list[fx.Node]) -> Graph:
    """timestep ["steps"] -> the packed step values ["steps", W], one output per dtype."""
    nodes = fx.Graph()
    new: dict[fx.Node, fx.Node] = {}
    ports = _enter(nodes, graph, steps, new)
    _enter_many_steps(ports, graph, new)
    rows_of_steps = call_node(nodes, aten.sym_size.int, new[graph.placeholders()[ports[0].name]], 0)
    outputs = []
    results = []
    for dtype, members in _by_dtype(steps).items():
        pieces = [
            call_node(nodes, aten.reshape.default, piece, [rows_of_steps, -1])
            for piece in _copy(nodes, graph, members, new, rows_of_steps, many_steps=True)
        ]
        results.append(call_node(nodes, aten.cat.default, pieces, 1))
        outputs.append(Port(_packed_name(STEP_VALUES, dtype), dtype, (STEPS, sum(_row_width(n) for n in members))))
    nodes.output(tuple(results))
    return with_nodes(
        graph, nodes, name=f"{graph.name}_table", inputs=tuple(replace(p, shape=(STEPS,)) for p in ports), outputs=tuple(outputs)
    )


def _schedule(graph: Graph, mixed: list[fx.Node]) -> Graph:
    """timestep ["steps"] and prompt inputs ["batch", ...] -> packed values ["steps*batch", V]: all steps in one call.

    The rows of the captured graph become the pairs (step, prompt row), step first.
    """
    nodes = fx.Graph()
    entered: dict[fx.Node, fx.Node] = {}
    ports = _enter(nodes, graph, mixed, entered)
    _enter_many_steps(ports, graph, entered)
    step_port = next(p for p in ports if Kind.STEP in p.kinds)
    row_port = next(p for p in ports if p.shape[:1] == (BATCH,))
    entering = graph.placeholders()
    steps = call_node(nodes, aten.sym_size.int, entered[entering[step_port.name]], 0)
    batch = call_node(nodes, aten.sym_size.int, entered[entering[row_port.name]], 0)
    pairs = call_node(nodes, operator.mul, steps, batch)
    new: dict[fx.Node, fx.Node] = {}
    for port in ports:
        source, rest = entered[entering[port.name]], list(port.shape[1:])
        if port.shape[:1] == (BATCH,):
            wide = call_node(nodes, aten.expand.default, call_node(nodes, aten.unsqueeze.default, source, 0), [steps, batch, *rest])
        elif Kind.STEP in port.kinds:
            wide = call_node(nodes, aten.expand.default, call_node(nodes, aten.unsqueeze.default, source, 1), [steps, batch])
        else:
            new[entering[port.name]] = source
            continue
        new[entering[port.name]] = call_node(nodes, aten.reshape.default, wide, [pairs, *rest])
    outputs, results = [], []
    for dtype, members in _by_dtype(mixed).items():
        copied = _copy(nodes, graph, members, new, pairs, many_steps=True)
        pieces = [call_node(nodes, aten.reshape.default, piece, [pairs, -1]) for piece in copied]
        results.append(call_node(nodes, aten.cat.default, pieces, 1))
        outputs.append(Port(_packed_name(SCHEDULE_VALUES, dtype), dtype, (f"{STEPS}*{BATCH}", sum(_row_width(n) for n in members))))
    nodes.output(tuple(results))
    inputs = tuple(replace(p, shape=(STEPS,)) if Kind.STEP in p.kinds else p for p in ports)
    return with_nodes(graph, nodes, name=f"{graph.name}_schedule", inputs=inputs, outputs=tuple(outputs))


def _prelude(graph: Graph, prompts: list[fx.Node]) -> Graph:
    """prompt inputs -> the prompt values that the loop reads."""
    computed = [n for n in prompts if n.op != "placeholder"]
    nodes = fx.Graph()
    new: dict[fx.Node, fx.Node] = {}
    ports = _enter(nodes, graph, computed, new)
    row_port = next((p for p in ports if p.shape[:1] == (BATCH,)), ports[0])
    batch = call_node(nodes, aten.sym_size.int, new[graph.placeholders()[row_port.name]], 0)
    nodes.output(tuple(_copy(nodes, graph, computed, new, batch)))
    outputs = tuple(replace(_prompt_port(graph, n), kinds=frozenset()) for n in computed)
    return with_nodes(graph, nodes, name=f"{graph.name}_prompt", inputs=tuple(ports), outputs=outputs)


def _enter(nodes: fx.Graph, graph: Graph, wanted: list[fx.Node], new: dict[fx.Node, fx.Node]) -> list[Port]:
    """Adds the placeholders that `wanted` depends on; returns their ports in the graph's order."""
    needed = _needed(wanted, {})
    ports = []
    for port, node in zip(graph.inputs, graph.placeholders().values()):
        if node in needed:
            new[node] = nodes.node_copy(node)
            ports.append(port)
    return ports


def _enter_many_steps(ports: list[Port], graph: Graph, new: dict[fx.Node, fx.Node]) -> None:
    """The captured timestep is one row; here its fake value has a symbolic number of them."""
    entering = graph.placeholders()
    timesteps = [new[entering[port.name]] for port in ports if Kind.STEP in port.kinds]
    mode = value(timesteps[0]).fake_mode
    dynamic: StatelessSymbolicContext[Any, Any] = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC])
    example = mode.from_tensor(torch.empty(_EXAMPLE_STEPS), static_shapes=False, source=ConstantSource(STEPS), symbolic_context=dynamic)
    for node in timesteps:
        node.meta["val"] = example.new_empty(example.shape, dtype=value(node).dtype)


def _needed(wanted: list[fx.Node], given: dict[fx.Node, fx.Node]) -> set[fx.Node]:
    found: set[fx.Node] = set()
    stack = list(wanted)
    while stack:
        node = stack.pop()
        if node in found or node in given:
            continue
        found.add(node)
        if not _is_batch_size(node):
            stack += node.all_input_nodes
    return found


def _copy(
    nodes: fx.Graph, graph: Graph, wanted: list[fx.Node], new: dict[fx.Node, fx.Node], batch: fx.Node, *, many_steps: bool = False
) -> list[fx.Node]:
    """Copies what `wanted` needs beyond `new` into `nodes`; the size of the batch is read from `batch`.

    With `many_steps` the timesteps are rows too: `batch` counts them, and what was computed from one becomes that many rows.
    """
    needed = _needed(wanted, new)
    kinds = dependence(graph) if many_steps else {}
    mode = value(next(iter(graph.placeholders().values()))).fake_mode
    for node in graph.module.graph.nodes:
        if node in needed:
            new[node] = batch if _is_batch_size(node) else nodes.node_copy(node, lambda n: new[n])
            if many_steps and Kind.STEP in kinds[node] and _has_one_row(node):
                _lengthen(new[node], batch)
            if many_steps and new[node].op == "call_function":
                with mode:
                    compute_value(new[node])
    return [new[n] for n in wanted]


def _has_one_row(node: fx.Node) -> bool:
    return is_tensor(node) and value(node).dim() > 0 and value(node).shape[0] == 1


def _lengthen(node: fx.Node, rows_now: fx.Node) -> None:
    """What was computed from one timestep is now computed from many: a size of 1 that is written down becomes their number."""
    if node.target not in (aten.reshape.default, aten.expand.default):
        return
    rest = list(node.args[1])[1:]  # type: ignore[arg-type]
    node.args = (node.args[0], [-1 if node.target is aten.expand.default or -1 not in rest else rows_now, *rest])


def _is_batch_size(node: fx.Node) -> bool:
    return node.target is aten.sym_size.int and isinstance(node.meta.get("val"), torch.SymInt)


def _results(graph: Graph) -> list[fx.Node]:
    output = next(n for n in graph.module.graph.nodes if n.op == "output")
    return [n for n in output.args[0] if isinstance(n, fx.Node)]


def _by_dtype(members: list[fx.Node]) -> dict[torch.dtype, list[fx.Node]]:
    groups: dict[torch.dtype, list[fx.Node]] = {}
    for node in members:
        groups.setdefault(value(node).dtype, []).append(node)
    return groups


def _row_width(node: fx.Node) -> int:
    """Elements of one row of the node's value."""
    return _row_bytes(node) // int(value(node).dtype.itemsize)


def _packed_name(name: str, dtype: torch.dtype) -> str:
    """Port name of the packed values of one dtype; fp32 has the plain name."""
    return name if dtype is torch.float32 else f"{name}_{str(dtype).removeprefix('torch.')}"


def _prompt_port(graph: Graph, node: fx.Node) -> Port:
    """The loop input that carries a prompt value; inputs that are passed on keep their name."""
    for port, placeholder in zip(graph.inputs, graph.placeholders().values()):
        if placeholder is node:
            return port
    return Port(f"prompt_{node.name}", value(node).dtype, dims(value(node)), frozenset([Kind.PROMPT]))


def _placeholder(nodes: fx.Graph, port: Port, fake: torch.Tensor) -> fx.Node:
    node = nodes.placeholder(port.name)
    node.meta["val"] = fake
    return node
