"""Step components of schedulers that are not linear, as Graphs of the denoiser's latent shape."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import fx

from dexport.errors import UserError
from dexport.exporter.solver import Solver
from dexport.exporter.solver_program import NEXT_SAMPLE, step_component
from dexport.exporter.step_trace import SCALARS
from dexport.passes.graph import BATCH, Graph, Kind, Port, copied_nodes


def step_graphs(solvers: Iterable[Solver], latent: tuple[int, ...]) -> tuple[Graph, ...]:
    """The step components that the solvers of one size share; none for linear solvers.

    Raises:
        UserError: two numbers of steps need different graphs under one name.
    """
    graphs: dict[str, Graph] = {}
    for solver in solvers:
        for number, component in enumerate(solver.stepped.components if solver.stepped else ()):
            name = step_component(number)
            shapes = {SCALARS: (1, *component.table.shape[2:])}
            ports = tuple(Port(i, torch.float32, shapes.get(i, (BATCH, *latent)), frozenset([Kind.LATENT])) for i in component.inputs)
            graph = Graph(name, _with_tuple(component.graph), ports, (Port(NEXT_SAMPLE, torch.float32, (BATCH, *latent)),), {})
            known = graphs.setdefault(name, graph)
            if known.module.code != graph.module.code:
                got = f"different step graphs of {solver.scheduler} for different numbers of steps"
                raise UserError(
                    "steps", expected="one step graph for all numbers of steps", got=got, fix="build a bundle per number of steps"
                )
    return tuple(graphs.values())


def _with_tuple(module: fx.GraphModule) -> fx.GraphModule:
    """The same module, returning a tuple as Graphs do, with numbers after tensors in products and sums, as ONNX export wants them."""
    nodes = copied_nodes(module)
    for node in nodes.nodes:
        if node.target in (torch.ops.aten.mul.Tensor, torch.ops.aten.add.Tensor) and not isinstance(node.args[0], fx.Node):
            node.args = (node.args[1], node.args[0])
    result = next(n for n in nodes.nodes if n.op == "output")
    if not isinstance(result.args[0], tuple | list):
        result.args = ((result.args[0],),)
    return fx.GraphModule(module, nodes)
