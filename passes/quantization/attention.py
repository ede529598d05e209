"""Quantized attention: a section's format and what was seen of operands become constants of `dexport::quantized_attention`.

Every operand has one constant scale, its largest magnitude at any step over the largest number of the format, because that is what
compilers fuse FP8 attention with (exporter/spellings). DGQ's published code has a scale per step instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import fx

from dexport.passes.graph import Graph, call_node, copied_nodes, value, with_nodes
from dexport.passes.quantization.attention_sites import OPERANDS, attention_arguments, attention_sites
from dexport.passes.quantization.recipe import AttentionSpec
from dexport.passes.quantization.statistics import SiteStatistics
from dexport.plugins.formats import format_of
from dexport.plugins.quantized_attention.reference import quantized_attention as _register  # noqa: F401 - registers the operation

_SMALLEST_SCALE = 2.0**-24
"""The smallest number above zero of fp16, in which a graph may hold a scale."""
_HEADS = (8, 256)
"""Sizes of heads for which the FP8 form is one kernel; measured with TensorRT-RTX 1.7.1 (exporter/engines/kernels.py)."""


@dataclass(frozen=True)
class AttentionValues:
    """How one attention is rounded: scales of query, key and value, and the spec; start tokens only where the keys are a text's."""

    scales: tuple[float, float, float]
    format: str
    probabilities: str
    start_tokens: int


@dataclass(frozen=True)
class AttentionDecisions:
    """Values by the name of the attention, and why others keep their precision."""

    values: Mapping[str, AttentionValues]
    skipped: Mapping[str, str]


def decide_attention(graph: Graph, spec: AttentionSpec, seen: Mapping[str, SiteStatistics], skip: frozenset[str]) -> AttentionDecisions:
    """The values of every attention of a graph.

    Args:
        seen: name of a site or operand -> statistics.
        skip: names of attentions to keep.
    """
    values: dict[str, AttentionValues] = {}
    skipped: dict[str, str] = {}
    nodes = {node.name: node for node in graph.module.graph.nodes}
    for site in attention_sites(graph):
        start = spec.start_tokens if site.prompted else 0
        operands = [seen[name] for name in site.operand_names if name in seen]
        if spec.keys == "text" and not site.prompted:
            reason: str | None = "the recipe keeps it: its keys are no text"
        else:
            reason = "the user keeps it" if site.name in skip else _refusal(nodes[site.node], start, operands)
        if reason is not None:
            skipped[site.name] = reason
            continue
        query, key, content = operands
        scales = _scale(query, spec), _scale(key, spec, start), _scale(content, spec)
        values[site.name] = AttentionValues(scales, spec.format, spec.probabilities, start)
    return AttentionDecisions(values, skipped)


def _refusal(node: fx.Node, start: int, seen: list[SiteStatistics]) -> str | None:
    key = value(node.args[1]).shape  # type: ignore[arg-type]
    if len(seen) < len(OPERANDS):
        return "calibration did not reach it"
    if attention_arguments(node)["enable_gqa"]:
        return "its heads share keys"
    if len(key) != 4 or not _HEADS[0] <= key[-1] <= _HEADS[1]:
        return f"heads of {key[-1]} have no fused kernel, which takes {_HEADS[0]} to {_HEADS[1]}"
    if start and (start >= key[-2] or seen[1].token_minimum is None):
        return f"it has no {start} start tokens beside others"
    return None


def _scale(seen: SiteStatistics, spec: AttentionSpec, start: int = 0) -> float:
    """Largest magnitude at any step, leading tokens left out, over the largest number."""
    low, high = (seen.token_minimum, seen.token_maximum) if start else (seen.minimum, seen.maximum)
    assert low is not None and high is not None
    return max(float(torch.maximum(high, -low)[:, start:].amax()) / format_of(spec.format).largest, _SMALLEST_SCALE)


def quantize_attention(graph: Graph, values: Mapping[str, AttentionValues]) -> Graph:
    """Replaces the named attentions of a graph."""
    nodes = copied_nodes(graph.module)
    by_name = {node.name: node for node in nodes.nodes}
    for site in attention_sites(graph):
        if (decided := values.get(site.name)) is None:
            continue
        node = by_name[site.node]
        given = attention_arguments(node)
        size = value(given["operands"][0]).shape[-1]
        factor = 1 / math.sqrt(size) if given["scale"] is None else given["scale"]
        rest = (factor, given["is_causal"], decided.format, decided.probabilities, decided.start_tokens)
        with nodes.inserting_before(node):
            operation = torch.ops.dexport.quantized_attention.default
            new = call_node(nodes, operation, *given["operands"], given["attn_mask"], *decided.scales, *rest)
        node.replace_all_uses_with(new)
        nodes.erase_node(node)
    return with_nodes(graph, nodes)
