"""Dependence analysis: which of {prompt, step, latent} every value of a captured graph depends on.

Sizes (`sym_size` and arithmetic on it) carry no data and depend on nothing.
"""

from __future__ import annotations

import torch
from torch import fx

from dexport.passes.graph import Graph, Kind

Kinds = frozenset[Kind]
NOTHING: Kinds = frozenset()


def dependence(graph: Graph) -> dict[fx.Node, Kinds]:
    """The kinds of every node; an empty set marks constants."""
    kinds: dict[fx.Node, Kinds] = {}
    entering = {node: port.kinds for port, node in zip(graph.inputs, graph.placeholders().values())}
    for node in graph.module.graph.nodes:
        if node.op == "placeholder":
            kinds[node] = entering[node]
        elif is_size(node):
            kinds[node] = NOTHING
        else:
            kinds[node] = NOTHING.union(*(kinds[source] for source in node.all_input_nodes))
    return kinds


def is_size(node: fx.Node) -> bool:
    """Whether the node is a size: an int that follows from shapes alone."""
    return isinstance(node.meta.get("val"), int | torch.SymInt) and node.op == "call_function"
