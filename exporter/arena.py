"""Memory for the values inside a graph while it runs: the most that are alive at once.

Nodes run in the order of the graph. Counted is what a compiler really stores:

- views share the memory of what they look into;
- a value between products that only one other such operation reads is never stored: it is computed in the registers of its reader, and
  what it reads stays alive until then;
- an operation between products works in place: what it is the last to read is free before its result is stored. A product is not: its
  operands and its result are alive together, and the scores of an attention that no kernel fuses twice (before and after the softmax).

Inputs and outputs are buffers of the sampling program and weights are counted apart, so neither is in here; scratch memory of kernels is
theirs to choose and is not known before an engine is built.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from dexport.exporter.operations import Operations, is_product, is_view, readers
from dexport.passes.graph import Graph, call_nodes, is_tensor


def arena_bytes(graph: Graph, sizes: Mapping[str, int]) -> int:
    """Bytes of the values that are alive together at the worst moment of a run.

    Args:
        sizes: of the symbolic dimensions ("batch", "steps") of the graph's inputs.
    """
    operations = Operations(graph, sizes)
    nodes = list(call_nodes(graph))
    held = _held(nodes)
    last = {stored: index for index, node in enumerate(nodes) for stored in held[node]}
    size = {node: 0.0 if _is_output(node) else operations.nbytes(node) for node in last}
    alive = most = 0.0
    for index, node in enumerate(nodes):
        ending = sum(size[stored] for stored in held[node] if last[stored] == index)
        made = size.get(node, 0.0)
        if is_product(node):
            most = max(most, alive + made + 2 * operations.scores(node))
            alive += made - ending
        else:
            alive += made - ending
            most = max(most, alive)
    return int(most)


def _held(nodes: list[fx.Node]) -> dict[fx.Node, frozenset[fx.Node]]:
    """Node -> the stored values that must be alive when it has run: itself if it is stored, and those that it reads."""
    seen: dict[fx.Node, frozenset[fx.Node]] = {}
    """Node -> the stored values behind it."""
    found: dict[fx.Node, frozenset[fx.Node]] = {}
    for node in nodes:
        read = frozenset[fx.Node]().union(*(seen.get(one, frozenset()) for one in node.all_input_nodes))
        stored = is_tensor(node) and not is_view(node) and not _is_fused(node)
        seen[node] = frozenset({node}) if stored else read
        found[node] = read | seen[node]
    return found


def _is_fused(node: fx.Node) -> bool:
    """Whether the only reader computes the value itself."""
    users = set(readers(node))
    return not is_product(node) and len(users) == 1 and not any(user.op == "output" or is_product(user) for user in users)


def _is_output(node: fx.Node) -> bool:
    return any(user.op == "output" for user in readers(node))
