"""Records the ATen operations that one step of a scheduler applies to its tensors.

Whatever does not depend on sample, model output or noise is a number by the time it meets them, and is recorded as a number:
steps of one scheduler then differ in numbers only, and one graph serves them all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

SCALARS = "scalars"


@dataclass(frozen=True)
class Value:
    """An argument that is a recorded tensor: an input (by name) or the result of an operation (by position)."""

    source: str | int


@dataclass(frozen=True)
class Scalar:
    """An argument that is a number and could as well be a tensor of one element."""

    position: int


@dataclass(frozen=True)
class Operation:
    """One ATen call; its arguments hold Value, Scalar and plain constants."""

    target: Any
    arguments: tuple[Any, ...]
    keywords: tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Trace:
    """What a step does: operations (equal between steps of one structure), the result, and the step's numbers."""

    operations: tuple[Operation, ...]
    result: Value
    scalars: tuple[float, ...]


class CannotRecordError(Exception):
    """The step does something that a graph of operations on tensors cannot say."""


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records operations on `inputs`, and hands out those named noise0, noise1, ... when noise is drawn."""

    def __init__(self, inputs: Mapping[str, torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._values = {id(tensor): Value(name) for name, tensor in inputs.items()}
        self._alive = list(inputs.values())  # an id is only good while its tensor lives
        self._noises = [tensor for name, tensor in inputs.items() if name.startswith("noise")]
        self._operations: list[Operation] = []
        self._scalars: list[float] = []

    def trace(self, result: torch.Tensor) -> Trace:
        """What was recorded, with `result` as its outcome."""
        if id(result) not in self._values:
            raise CannotRecordError("its result does not depend on its tensors")
        return Trace(tuple(self._operations), self._values[id(result)], tuple(self._scalars))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            noise = self._noises.pop(0)
            if func is not torch.ops.aten.normal_.default:
                return noise
            args[0].copy_(noise)
            self._remember(args[0], self._values[id(noise)])
            return args[0]
        result = func(*args, **(kwargs or {}))
        leaves, _ = tree_flatten((args, kwargs or {}))
        if any(id(leaf) in self._values for leaf in leaves if isinstance(leaf, torch.Tensor)):
            self._record(func, args, kwargs or {}, result)
        return result

    def _record(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        if not isinstance(result, torch.Tensor) or func._schema.is_mutable:
            raise CannotRecordError(f"it calls {func} on its tensors")
        liftable = [isinstance(argument.type, torch.TensorType) for argument in func._schema.arguments]
        arguments = tuple(self._argument(argument, lift) for argument, lift in zip(args, liftable))
        keywords = tuple((name, self._argument(argument, lift=False)) for name, argument in kwargs.items())
        self._operations.append(Operation(func, arguments, keywords))
        self._remember(result, Value(len(self._operations) - 1))

    def _remember(self, tensor: torch.Tensor, value: Value) -> None:
        self._values[id(tensor)] = value
        self._alive.append(tensor)

    def _argument(self, argument: Any, lift: bool) -> Any:
        if lift and isinstance(argument, (int, float)):
            return self._scalar(argument)
        return tree_map(self._leaf, argument) if not isinstance(argument, list) else tuple(map(self._leaf, argument))

    def _leaf(self, leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        if id(leaf) in self._values:
            return self._values[id(leaf)]
        if leaf.numel() != 1:
            raise CannotRecordError(f"it uses a tensor of shape {list(leaf.shape)} that is not sample, model output or noise")
        return self._scalar(float(leaf))

    def _scalar(self, number: float) -> Scalar:
        self._scalars.append(float(number))
        return Scalar(len(self._scalars) - 1)


def graph_of(trace: Trace, inputs: Sequence[str], columns: Mapping[int, int]) -> fx.GraphModule:
    """A graph of a trace.

    Args:
        trace: of any step of the structure.
        inputs: names of the graph's inputs, in order; SCALARS [1, n] float32 where `columns` is not empty.
        columns: position of a number in the trace -> column of `scalars` that it comes from; others are constants.
    """
    graph = fx.Graph()
    placeholders = {name: graph.placeholder(name) for name in inputs}
    lifted: dict[int, fx.Node] = {}
    if columns:
        row = graph.call_function(torch.ops.aten.select.int, (placeholders[SCALARS], 0, 0))
        lifted = {p: graph.call_function(torch.ops.aten.select.int, (row, 0, column)) for p, column in columns.items()}
    nodes: list[fx.Node] = []

    def argument(item: Any) -> Any:
        if isinstance(item, Value):
            return placeholders[item.source] if isinstance(item.source, str) else nodes[item.source]
        if isinstance(item, Scalar):
            return lifted.get(item.position, trace.scalars[item.position])
        return [argument(part) for part in item] if isinstance(item, tuple) else item

    for operation in trace.operations:
        arguments = tuple(argument(item) for item in operation.arguments)
        nodes.append(graph.call_function(operation.target, arguments, {name: argument(item) for name, item in operation.keywords}))
    graph.output(argument(trace.result))
    graph.eliminate_dead_code()
    graph.lint()
    return fx.GraphModule({}, graph)
