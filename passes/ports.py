"""Ports that every runtime can fill: samples are fp32 outside the engines, and no port is bf16, which numpy lacks."""

from __future__ import annotations

from dataclasses import replace

import torch

from dexport.passes.graph import Graph, Kind, Port, copied_nodes, with_nodes

_HALVES = (torch.float16, torch.bfloat16)


def widen_ports(graph: Graph) -> Graph:
    """Makes latent inputs, the outputs of graphs that have any, and all bf16 ports fp32, with casts inside."""
    runs_in_loop = any(Kind.LATENT in p.kinds for p in graph.inputs)
    inputs = tuple(_widened(p, Kind.LATENT in p.kinds) for p in graph.inputs)
    outputs = tuple(_widened(p, runs_in_loop) for p in graph.outputs)
    if (inputs, outputs) == (graph.inputs, graph.outputs):
        return graph
    nodes = copied_nodes(graph.module)
    placeholders = [n for n in nodes.nodes if n.op == "placeholder"]
    after = placeholders[-1].next
    for node, before, now in zip(placeholders, graph.inputs, inputs, strict=True):
        if before.dtype is not now.dtype:
            with nodes.inserting_before(after):
                narrow = nodes.call_function(torch.ops.aten._to_copy.default, (node,), {"dtype": before.dtype})
            node.replace_all_uses_with(narrow)
            narrow.args = (node,)
            if isinstance(fake := node.meta.get("val"), torch.Tensor):
                narrow.meta["val"], node.meta["val"] = fake, fake.to(now.dtype)
    result = next(n for n in nodes.nodes if n.op == "output")
    produced = list(result.args[0])
    for index, (before, now) in enumerate(zip(graph.outputs, outputs, strict=True)):
        if before.dtype is not now.dtype:
            with nodes.inserting_before(result):
                produced[index] = nodes.call_function(torch.ops.aten._to_copy.default, (produced[index],), {"dtype": now.dtype})
    result.args = (tuple(produced),)
    return with_nodes(graph, nodes, inputs=inputs, outputs=outputs)


def _widened(port: Port, also_half: bool) -> Port:
    wide = port.dtype is torch.bfloat16 or (also_half and port.dtype in _HALVES)
    return replace(port, dtype=torch.float32) if wide else port
