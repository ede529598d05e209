"""Capture: a hollow PyTorch module and example inputs become a Graph."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dexport.errors import Failure
from dexport.passes.graph import BATCH, Dim, Graph, Kind, Port, Weight, copied_nodes, dims, with_nodes

_log = logging.getLogger(__name__)
_EXAMPLE_BATCH = 2  # torch.export specialises sizes 0 and 1, so the example must have at least two rows


@dataclass(frozen=True)
class Input:
    """One input of a component to be captured."""

    name: str
    shape: tuple[Dim, ...]
    dtype: torch.dtype
    kind: Kind

    def example(self) -> torch.Tensor:
        """A tensor of this shape; its values are never used."""
        return torch.ones([_EXAMPLE_BATCH if d == BATCH else int(d) for d in self.shape], dtype=self.dtype)


def capture(
    name: str,
    module: nn.Module,
    inputs: Sequence[Input],
    outputs: Sequence[str],
    weight: Callable[[str, torch.Tensor], Weight],
) -> Graph:
    """Captures `module(*inputs)` at the ATen level with one symbolic size, the batch.

    Args:
        name: component name, for messages and files.
        module: returns a tensor or a tuple of tensors, one per name in `outputs`.
        weight: (parameter path inside `module`, its hollow tensor) -> where its values come from.

    Raises:
        Failure: torch.export cannot trace the module; the first line of its reason is given.
    """
    # Not a named Dim with a range: libraries branch on large batches for speed (diffusers' upsampling at 64 rows), and a guard that narrows
    # the range would be refused. DYNAMIC still refuses a batch that the model fixes to one number.
    batch = torch.export.Dim.DYNAMIC
    shapes = tuple({i: batch for i, d in enumerate(item.shape) if d == BATCH} or None for item in inputs)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(
                module, tuple(i.example() for i in inputs), dynamic_shapes=_as_declared(module, shapes), strict=False
            )
            captured = program.run_decompositions({}).module(check_guards=False)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        wanted = "a model that torch.export can trace"
        raise Failure(name, expected=wanted, got=reason, fix="see the adapter of this family for known obstacles") from error
    assert isinstance(captured, torch.fx.GraphModule)
    weights: Mapping[str, Weight] = {path: weight(path, tensor) for path, tensor in captured.named_parameters(remove_duplicate=False)}
    ports = tuple(Port(i.name, i.dtype, i.shape, frozenset([i.kind])) for i in inputs)
    nodes = copied_nodes(captured)
    results = next(n for n in nodes.nodes if n.op == "output").args[0]
    assert isinstance(results, tuple | list)
    produced = tuple(Port(o, r.meta["val"].dtype, dims(r.meta["val"])) for o, r in zip(outputs, results, strict=True))
    graph = with_nodes(Graph(name, captured, ports, produced, weights), nodes)
    _log.debug("captured %s: %d nodes", name, len(graph.module.graph.nodes))
    return graph


def _as_declared(module: nn.Module, shapes: tuple[Any, ...]) -> tuple[Any, ...]:
    """One entry per parameter of `forward`: those of `*rest` go into one tuple."""
    parameters = list(inspect.signature(module.forward).parameters.values())
    if not parameters or parameters[-1].kind is not inspect.Parameter.VAR_POSITIONAL:
        return shapes
    named = len(parameters) - 1
    return (*shapes[:named], shapes[named:])
