"""Values per sampling step that quantization adds: one more packed input of the loop, one more output of the step table."""

from __future__ import annotations

import torch
from torch import fx

from dexport.passes.graph import STEPS, Graph, Kind, Port, copied_nodes, with_attributes

aten = torch.ops.aten
QUANTIZATION_VALUES = "step_values_quantization"


def with_step_values(table: Graph | None, name: str, timesteps: torch.Tensor, values: torch.Tensor) -> Graph:
    """The step table with `values` as an output more; a step takes the row of the calibrated step whose timestep is nearest.

    Args:
        table: what hoisting made: timestep ["steps"] -> packed rows; None where nothing depended on the step alone.
        name: of a new table.
        timesteps: those that were calibrated, float32 [T].
        values: float32 [T, K].
    """
    if table is None:
        table = _empty(name)
    nodes = copied_nodes(table.module)
    result = next(n for n in nodes.nodes if n.op == "output")
    timestep = next(n for n in nodes.nodes if n.op == "placeholder")
    with nodes.inserting_before(result):
        known = nodes.get_attr("quantization_timesteps")
        rows = nodes.get_attr(QUANTIZATION_VALUES)
        wanted, there = (nodes.call_function(aten.unsqueeze.default, pair) for pair in ((timestep, 1), (known, 0)))
        gap = nodes.call_function(aten.sub.Tensor, (wanted, there))
        nearest = nodes.call_function(aten.argmin.default, (nodes.call_function(aten.abs.default, (gap,)), 1))
        chosen = nodes.call_function(aten.index_select.default, (rows, 0, nearest))
    result.args = ((*result.args[0], chosen),)
    port = Port(QUANTIZATION_VALUES, torch.float32, (STEPS, values.shape[1]))
    new = {"quantization_timesteps": timesteps.float(), QUANTIZATION_VALUES: values.float().contiguous()}
    return with_attributes(table, nodes, new, outputs=(*table.outputs, port))


def _empty(name: str) -> Graph:
    nodes = fx.Graph()
    nodes.placeholder("timestep")
    nodes.output(())
    port = Port("timestep", torch.float32, (STEPS,), frozenset([Kind.STEP]))
    return Graph(name, fx.GraphModule({}, nodes), (port,), (), {})
