"""Values per step as one more output of the step table."""

from __future__ import annotations

import torch
from torch import fx

from dexport.passes.graph import STEPS, Graph, Kind, Port, run
from dexport.passes.quantization.step_table import QUANTIZATION_VALUES, with_step_values

aten = torch.ops.aten
TIMESTEPS, VALUES = torch.tensor([999.0, 666.0, 333.0, 0.0]), torch.arange(12.0).reshape(4, 3)
TIMESTEP = Port("timestep", torch.float32, (STEPS,), frozenset([Kind.STEP]))


def _table() -> Graph:
    """timestep -> its sine, as hoisting would write it."""
    nodes = fx.Graph()
    timestep = nodes.placeholder("timestep")
    nodes.output((nodes.call_function(aten.unsqueeze.default, (nodes.call_function(aten.sin.default, (timestep,)), 1)),))
    return Graph("model_table", fx.GraphModule({}, nodes), (TIMESTEP,), (Port("step_values", torch.float32, (STEPS, 1)),), {})


def test_calibrated_steps_get_their_own_row() -> None:
    table = with_step_values(None, "model_table", TIMESTEPS, VALUES)
    assert table.name == "model_table" and table.inputs == (TIMESTEP,)
    assert table.outputs == (Port(QUANTIZATION_VALUES, torch.float32, (STEPS, 3)),)
    assert torch.equal(run(table, {"timestep": TIMESTEPS})[QUANTIZATION_VALUES], VALUES)
    assert torch.equal(run(table, {"timestep": TIMESTEPS.flip(0)[:2]})[QUANTIZATION_VALUES], VALUES.flip(0)[:2])


def test_other_steps_get_the_row_of_the_nearest() -> None:
    table = with_step_values(None, "t", TIMESTEPS, VALUES)
    found = run(table, {"timestep": torch.tensor([1200.0, 834.0, 832.0, 499.0, 100.0, -1.0])})[QUANTIZATION_VALUES]
    assert torch.equal(found, VALUES[[0, 0, 1, 2, 3, 3]])


def test_what_the_table_had_stays() -> None:
    before = _table()
    table = with_step_values(before, "another name", TIMESTEPS, VALUES)
    assert table.name == "model_table" and [port.name for port in table.outputs] == ["step_values", QUANTIZATION_VALUES]
    found = run(table, {"timestep": TIMESTEPS})
    assert torch.equal(found["step_values"], TIMESTEPS.sin()[:, None]) and torch.equal(found[QUANTIZATION_VALUES], VALUES)
    assert list(run(before, {"timestep": TIMESTEPS})) == ["step_values"]  # the given table is as it was
