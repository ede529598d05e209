"""Graphs for tests: small modules with real weights, captured as the exporter captures them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from dexport.exporter.capture import Input, capture
from dexport.passes.graph import BATCH, Graph, Kind, Weight
from dexport.passes.repair import repair

LATENT = Input("latent", (BATCH, 6, 8), torch.float32, Kind.LATENT)
TIMESTEP = Input("timestep", (1,), torch.float32, Kind.STEP)
PROMPT = Input("prompt", (BATCH, 5, 8), torch.float32, Kind.PROMPT)


def graph_of(module: nn.Module, inputs: Sequence[Input] = (LATENT,), outputs: Sequence[str] = ("out",), *, repaired: bool = True) -> Graph:
    """`module` captured; its parameters are the weights."""
    module = module.eval().requires_grad_(False)
    graph = capture("model", module, inputs, outputs, weight_of)
    return repair(graph) if repaired else graph


def weight_of(path: str, tensor: torch.Tensor) -> Weight:
    """The tensor itself as a weight."""
    return Weight(tuple(tensor.shape), tensor.dtype, lambda: tensor.detach(), path)


def example(inputs: Sequence[Input], batch: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random inputs; timesteps lie between 0 and 1000."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for item in inputs:
        tensor = torch.randn([batch if d == BATCH else int(d) for d in item.shape], generator=generator)
        found[item.name] = tensor.abs() * 300 if item.kind is Kind.STEP else tensor.to(item.dtype)
    return found


def operations(graph: Graph) -> list[str]:
    """The names of the operations, in order."""
    return [str(node.target).removeprefix("aten.") for node in graph.module.graph.nodes if node.op == "call_function"]
