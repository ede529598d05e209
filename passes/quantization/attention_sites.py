"""Attention sites: the scaled dot-product attentions of a graph, which have no weights, by the names of the modules that they belong to."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from dexport.passes.dependence import dependence
from dexport.passes.graph import Graph, Kind
from dexport.passes.quantization.sites import sites

ATTENTION = torch.ops.aten.scaled_dot_product_attention.default
OPERANDS = ("query", "key", "value")


@dataclass(frozen=True)
class AttentionSite:
    """One attention.

    Attributes:
        name: path of its module, "transformer_blocks.0.attn1", which is that of the nearest linear that makes its query, without the last
            part; with "#2" and so on where that is not unique; the name of its node where no linear makes the query.
        node: name of its node.
        operands: names of the nodes of query, key and value.
        prompted: the prompt alone decides its keys: they are those of a text.
    """

    name: str
    node: str
    operands: tuple[str, str, str]
    prompted: bool

    @property
    def operand_names(self) -> tuple[str, ...]:
        """What statistics call query, key and value: "transformer_blocks.0.attn1:query"."""
        return tuple(f"{self.name}:{operand}" for operand in OPERANDS)


def attention_sites(graph: Graph) -> tuple[AttentionSite, ...]:
    """Every attention, in graph order."""
    found: list[AttentionSite] = []
    seen: Counter[str] = Counter()
    linears = {site.node: site.name for site in sites(graph)}
    kinds = dependence(graph)
    for node in graph.module.graph.nodes:
        if node.target is not ATTENTION:
            continue
        query, key, value = attention_arguments(node)["operands"]
        name = _module(query, linears) or node.name
        seen[name] += 1
        unique = name if seen[name] == 1 else f"{name}#{seen[name]}"
        prompted = Kind.PROMPT in kinds[key] and Kind.LATENT not in kinds[key]
        found.append(AttentionSite(unique, node.name, (query.name, key.name, value.name), prompted))
    return tuple(found)


def attention_arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of an attention node: "operands" (three nodes), "attn_mask", "is_causal", "scale" and so on, with their defaults."""
    schema = ATTENTION._schema.arguments
    given = dict(zip((argument.name for argument in schema), node.args)) | node.kwargs
    found = {a.name: given.get(a.name, a.default_value if a.has_default_value() else None) for a in schema}
    return found | {"operands": tuple(found[name] for name in OPERANDS)}


def _module(query: fx.Node, linears: Mapping[str, str]) -> str:
    """The path of the module of the nearest linear before a query; empty if there is none."""
    waiting, seen = deque([query]), {query}
    while waiting:
        node = waiting.popleft()
        if node.name in linears:
            return linears[node.name].rpartition(".")[0]
        fresh = [source for source in node.all_input_nodes if source not in seen]
        seen.update(fresh)
        waiting.extend(fresh)
    return ""
