"""Attentions are found by the modules that they belong to."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from dexport.passes.quantization.attention_sites import attention_arguments, attention_sites
from tests.passes.graphs import graph_of
from tests.passes.quantization.attention_block import INPUTS, Attentions


def test_names_operands_and_what_decides_the_keys() -> None:
    graph = graph_of(Attentions(), INPUTS)
    own, text = attention_sites(graph)
    assert (own.name, text.name) == ("own", "text")
    assert (own.prompted, text.prompted) == (False, True)
    assert text.operand_names == ("text:query", "text:key", "text:value")
    nodes = {node.name: node for node in graph.module.graph.nodes}
    given = attention_arguments(nodes[own.node])
    assert tuple(node.name for node in given["operands"]) == own.operands
    assert (given["scale"], given["is_causal"], given["attn_mask"]) == (0.3, False, None)


class Twice(nn.Module):
    """A layer that makes the queries of two attentions, and a query that no layer makes."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.ModuleDict({"to_q": nn.Linear(8, 8)})

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        query = self.attn["to_q"](latent)
        pairs = ((query, latent), (query, latent + 1), (latent, latent))
        return torch.cat([scaled_dot_product_attention(q, k, latent) for q, k in pairs])


def test_names_are_unique() -> None:
    named, again, bare = attention_sites(graph_of(Twice()))
    assert (named.name, again.name, bare.name) == ("attn", "attn#2", bare.node)
