"""Captured pipelines as files: capture needs the newest PyTorch, what runs graphs does not, and a machine with a GPU may have an older one.

Nodes lose their fake values on the way; they are computed again when a file is read, with the batch as a symbol.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from dexport.exporter.split import Split
from dexport.passes.graph import STEPS, Graph, Port, Weight, materialise

_EXAMPLE = {STEPS: 3}
_ROWS = 2  # for any other symbol


def save_split(split: Split, path: Path) -> None:
    """Writes the graphs of a size with their weights, fp32 ones in half the bytes if that loses nothing."""
    torch.save(split.map(_plain), path)


def load_split(path: Path) -> Split:
    """Reads what `save_split` wrote; the file is executed, as pickles are."""
    split: Split = torch.load(path, weights_only=False)
    return split.map(_live)


def _plain(graph: Graph) -> Any:
    held = {name: _narrow(weight.load()) for name, weight in materialise(graph).weights.items()}
    nodes = fx.Graph()
    nodes.output(nodes.graph_copy(graph.module.graph, {}))
    for node in nodes.nodes:
        node.meta.clear()
    return replace(graph, module=fx.GraphModule(graph.module, nodes), weights=held)  # type: ignore[arg-type]


def _narrow(tensor: torch.Tensor) -> torch.Tensor:
    half = tensor.half()
    return half if tensor.dtype is torch.float32 and torch.equal(half.float(), tensor) else tensor


def _live(graph: Any) -> Graph:
    weights = {name: _weight(name, tensor) for name, tensor in graph.weights.items()}
    loaded = replace(graph, weights=weights)
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    inputs = [_fake(mode, port) for port in graph.inputs]
    with mode, torch.no_grad(), enable_python_dispatcher():
        _Faked(loaded.module, mode, weights).run(*inputs)
    return loaded


def _fake(mode: FakeTensorMode, port: Port) -> torch.Tensor:
    """An input whose named sizes are symbols, the same one for the same size."""
    named = [isinstance(size, str) for size in port.shape]
    real = torch.ones([_EXAMPLE.get(size, _ROWS) if isinstance(size, str) else size for size in port.shape], dtype=port.dtype)
    context = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DUCK if symbol else DimDynamic.STATIC for symbol in named])
    return mode.from_tensor(real, symbolic_context=context)


def _weight(name: str, tensor: torch.Tensor) -> Weight:
    wide = tensor.float() if tensor.dtype is torch.float16 else tensor
    return Weight(tuple(wide.shape), wide.dtype, lambda: wide, name)


class _Faked(fx.Interpreter):
    """Gives every node the fake value that it has."""

    def __init__(self, module: fx.GraphModule, mode: FakeTensorMode, weights: dict[str, Weight]) -> None:
        super().__init__(module)
        self._mode, self._weights = mode, weights

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A weight by what it will be, a buffer as it is."""
        weight = self._weights.get(target)
        if weight is not None:
            return torch.empty(weight.shape, dtype=weight.dtype)
        return self._mode.from_tensor(super().get_attr(target, args, kwargs).detach())

    def run_node(self, n: fx.Node) -> Any:
        """Runs one node and remembers its value."""
        n.meta["val"] = super().run_node(n)
        return n.meta["val"]
