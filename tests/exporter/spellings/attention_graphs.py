"""Graphs with quantized attentions for tests, with constants that need no calibration."""

from __future__ import annotations

from dexport.passes.graph import Graph
from dexport.passes.quantization.attention import AttentionValues, quantize_attention
from dexport.passes.quantization.attention_sites import attention_sites

FP8 = AttentionValues((0.01, 0.012, 0.008), "e4m3", "e4m3", 0)


def with_quantized_attention(graph: Graph, values: AttentionValues = FP8) -> Graph:
    """Every attention of the graph quantized in the same way."""
    return quantize_attention(graph, {site.name: values for site in attention_sites(graph)})
