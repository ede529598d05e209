"""Golden runs: only of models that fit, and never of numbers that are none."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from dexport.exporter.golden import fits
from dexport.passes.graph import Weight
from tests.passes.graphs import graph_of


def test_a_model_larger_than_memory_gets_no_golden_run() -> None:
    graph = graph_of(nn.Linear(8, 8))
    assert fits((graph, graph))
    huge = Weight((1 << 30, 1 << 20), torch.float32, graph.weights["weight"].load, "huge")
    assert not fits((graph, replace(graph, weights={**graph.weights, "weight": huge})))
    assert fits((replace(graph, weights={**graph.weights, "idle": huge}),)), "weights that nothing reads take no memory"
