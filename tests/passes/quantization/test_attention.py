"""Quantized attention in a graph: scales from what was seen, the meaning of what is written, and what is left alone."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from dexport.passes.graph import Graph, run
from dexport.passes.quantization.attention import AttentionValues, decide_attention, quantize_attention
from dexport.passes.quantization.attention_sites import attention_sites
from dexport.passes.quantization.calibrate import empty_accumulator, site_statistics, watched
from dexport.passes.quantization.recipe import AttentionSpec
from dexport.passes.quantization.reservoir import Origin
from dexport.passes.quantization.statistics import SiteStatistics
from dexport.plugins.quantized_attention.reference import quantized_attention
from tests.passes.graphs import example, graph_of
from tests.passes.quantization.attention_block import INPUTS, Attentions

E4M3 = AttentionSpec(format="e4m3", probabilities="e4m3")
DGQ = AttentionSpec(format="int8", probabilities="log2-8", keys="text", start_tokens=1)


@pytest.fixture(scope="module")
def graph() -> Graph:
    return graph_of(Attentions(), INPUTS)


@pytest.fixture(scope="module")
def values(graph: Graph) -> dict[str, torch.Tensor]:
    """Name of every node -> what it is in a run."""
    found: dict[str, torch.Tensor] = {}
    run(graph, example(INPUTS, 3), lambda node, value: found.update({node.name: value}))
    return found


@pytest.fixture(scope="module")
def seen(graph: Graph, values: dict[str, torch.Tensor]) -> dict[str, SiteStatistics]:
    """Two steps, of which the second has half the numbers."""
    accumulators = [empty_accumulator(entry, "model", 0) for entry in watched(graph, 2)]
    for accumulator in accumulators:
        for step in range(2):
            accumulator.update(Origin(0, 0, step), values[accumulator.about.node] / (1 + step))
    return site_statistics(accumulators)


def test_scales_are_the_largest_of_all_steps(graph: Graph, seen: dict[str, SiteStatistics], values: dict[str, torch.Tensor]) -> None:
    found = decide_attention(graph, E4M3, seen, frozenset())
    assert set(found.values) == {"own", "text"} and not found.skipped
    for site in attention_sites(graph):
        wanted = [float(values[name].abs().max()) / 448 for name in site.operands]
        assert found.values[site.name] == AttentionValues(pytest.approx(wanted), "e4m3", "e4m3", 0)  # type: ignore[arg-type]


def test_start_tokens_do_not_count(graph: Graph, seen: dict[str, SiteStatistics], values: dict[str, torch.Tensor]) -> None:
    found = decide_attention(graph, DGQ, seen, frozenset())
    assert found.skipped == {"own": "the recipe keeps it: its keys are no text"}
    text = next(site for site in attention_sites(graph) if site.name == "text")
    assert found.values["text"].start_tokens == 1
    assert found.values["text"].scales[1] == pytest.approx(float(values[text.operands[1]][:, :, 1:].abs().max()) / 127)
    assert found.values["text"].scales[2] == pytest.approx(float(values[text.operands[2]].abs().max()) / 127)


def test_the_graph_does_what_the_operation_means(graph: Graph, values: dict[str, torch.Tensor]) -> None:
    decided = {"text": AttentionValues((0.02, 0.03, 0.01), "int8", "log2-6", 1)}
    changed = quantize_attention(graph, decided)
    inputs = example(INPUTS, 3)
    kept = {site.name: site for site in attention_sites(changed)}
    assert set(kept) == {"own"} and len(attention_sites(graph)) == 2
    text = next(site for site in attention_sites(graph) if site.name == "text")
    mask = values[next(n.name for n in graph.module.graph.nodes if n.op == "placeholder" and n.name == "mask")]
    operands = [values[name] for name in text.operands]
    wanted = quantized_attention(*operands, mask, 0.02, 0.03, 0.01, 1 / math.sqrt(16), False, "int8", "log2-6", 1)
    assert torch.equal(run(changed, inputs)["out"], wanted)


def test_what_cannot_be_treated_says_why(graph: Graph, seen: dict[str, SiteStatistics]) -> None:
    assert decide_attention(graph, E4M3, seen, frozenset({"own"})).skipped == {"own": "the user keeps it"}
    assert decide_attention(graph, E4M3, {}, frozenset()).skipped == dict.fromkeys(("own", "text"), "calibration did not reach it")
    many = replace(DGQ, start_tokens=5)
    assert decide_attention(graph, many, seen, frozenset()).skipped["text"] == "it has no 5 start tokens beside others"
    narrow = graph_of(Attentions(head=4), INPUTS)
    wrong = decide_attention(narrow, E4M3, seen, frozenset()).skipped
    assert wrong["text"] == "heads of 4 have no fused kernel, which takes 8 to 256"
