"""Graph: a captured component, the one value that passes take and return.

A Graph is an ATen-level `torch.fx.GraphModule` plus the meaning of its inputs and the source of its weights. `linear` and
`scaled_dot_product_attention` stay whole. Weights are `get_attr` nodes that point at *hollow* tensors (right shape and dtype, one
element of storage); the real values come from `weights` when somebody asks. Computed buffers (position tables) are real.

Shape notation: an int, or a name: "batch" (rows of the latent), and "steps" in graphs that serve all sampling steps at once.
"""

from __future__ import annotations

import enum
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

Dim = int | str
BATCH = "batch"
STEPS = "steps"


class Kind(enum.Enum):
    """What a value may depend on. Values that depend on nothing are constants (sizes are fixed per graph)."""

    PROMPT = "prompt"
    STEP = "step"
    LATENT = "latent"


@dataclass(frozen=True)
class Port:
    """An input or output of a graph: dtype, shape such as ("batch", 4, 32, 32), and for inputs the kinds it brings in."""

    name: str
    dtype: torch.dtype
    shape: tuple[Dim, ...]
    kinds: frozenset[Kind] = frozenset()


@dataclass(frozen=True)
class Weight:
    """A tensor that is read when needed: `load()` returns `shape` and `dtype`, freshly read, and keeps nothing."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[], torch.Tensor]
    origin: str

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return _numel(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Graph:
    """A captured component.

    Attributes:
        module: placeholders in the order of `inputs`, one output node that returns a tuple in the order of `outputs`.
        weights: `get_attr` target -> Weight, for every target that is hollow in `module`.
    """

    name: str
    module: fx.GraphModule
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    weights: Mapping[str, Weight]

    def placeholders(self) -> dict[str, fx.Node]:
        """Input name -> placeholder node."""
        nodes = [n for n in self.module.graph.nodes if n.op == "placeholder"]
        return {port.name: node for port, node in zip(self.inputs, nodes, strict=True)}

    def used_weights(self) -> dict[str, Weight]:
        """The weights that some node of the module still reads."""
        targets = {n.target for n in self.module.graph.nodes if n.op == "get_attr"}
        return {name: weight for name, weight in self.weights.items() if name in targets}

    def parameter_count(self) -> int:
        """Number of elements of matrices and kernels (2 or more dimensions) that the module reads."""
        return sum(_numel(w.shape) for w in self.used_weights().values() if len(w.shape) >= 2)


def with_nodes(graph: Graph, nodes: fx.Graph, **changes: Any) -> Graph:
    """A copy of `graph` whose module runs `nodes`; attributes are shared, never copied. Dead nodes are removed."""
    nodes.eliminate_dead_code()
    nodes.lint()
    module = fx.GraphModule(graph.module, nodes)
    return replace(graph, module=module, **changes)


def with_attributes(graph: Graph, nodes: fx.Graph, new: Mapping[str, torch.Tensor], **changes: Any) -> Graph:
    """A copy of `graph` whose module runs `nodes`, which also read the tensors `new`: attribute path -> real or hollow tensor."""
    nodes.eliminate_dead_code()
    nodes.lint()
    targets = {str(n.target) for n in nodes.nodes if n.op == "get_attr"}
    held = {t: new[t] if t in new else operator.attrgetter(t)(graph.module) for t in targets}
    return replace(graph, module=fx.GraphModule(held, nodes), **changes)


def hollow(weight: Weight) -> torch.nn.Parameter:
    """What stands for a weight in a module: its shape and dtype with one element of storage."""
    return torch.nn.Parameter(torch.zeros((), dtype=weight.dtype).expand(weight.shape), requires_grad=False)


def copied_nodes(module: fx.GraphModule) -> fx.Graph:
    """A copy of the module's node list that may be edited; metadata is carried over."""
    copy = fx.Graph()
    result = copy.graph_copy(module.graph, {})
    copy.output(result)
    return copy


def call_node(nodes: fx.Graph, target: Callable[..., Any], *args: Any) -> fx.Node:
    """Appends a call whose fake value is computed at once, so that later passes can read its shape."""
    node = nodes.call_function(target, args)
    compute_value(node)
    return node


def compute_value(node: fx.Node) -> None:
    """Records the fake value of a call, computed from those of its arguments."""

    def fake(argument: Any) -> Any:
        return value(argument) if isinstance(argument, fx.Node) else argument

    assert callable(node.target)
    node.meta["val"] = node.target(*fx.node.map_aggregate(node.args, fake), **fx.node.map_aggregate(node.kwargs, fake))


def value(node: fx.Node) -> Any:
    """The fake value recorded for a node: a FakeTensor, a SymInt, or a list of them."""
    return node.meta["val"]


def is_tensor(node: fx.Node) -> bool:
    """Whether the node produces one tensor (not a list of tensors, not a size)."""
    return isinstance(node.meta.get("val"), torch.Tensor)


def dims(tensor: torch.Tensor) -> tuple[Dim, ...]:
    """Shape with the symbolic size written as "batch"; other expressions of it keep their text."""
    return tuple(_dim(d) for d in tensor.shape)


def _dim(size: int | torch.SymInt) -> Dim:
    if isinstance(size, int):
        return size
    expression = size.node.expr
    if expression.is_Integer:
        return int(expression)
    return BATCH if expression.is_Symbol else str(expression)


def _numel(shape: Sequence[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


class Evaluator(fx.Interpreter):
    """Runs a module, reading each weight when a node needs it and dropping it after its last use.

    `watch`, if given, sees every node and its value: calibration, NaN search and tests hang on this one hook.
    """

    def __init__(self, module: fx.GraphModule, weights: Mapping[str, Weight], watch: Callable[[fx.Node, Any], None] | None = None) -> None:
        super().__init__(module)
        self._weights = weights
        self._watch = watch

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Weights are not read yet: captured modules have them all in front. Real buffers come from the module."""
        weight = self._weights.get(target)
        return weight if weight is not None else super().get_attr(target, args, kwargs)

    def run_node(self, n: fx.Node) -> Any:
        """Reads the weights that a node is the first to need, runs it, and shows what came to `watch`."""
        for given in n.all_input_nodes:
            if isinstance(weight := self.env[given], Weight):
                self.env[given] = self._shown(given, weight.load())
        result = super().run_node(n)
        return result if isinstance(result, Weight) else self._shown(n, result)

    def _shown(self, node: fx.Node, result: Any) -> Any:
        if self._watch is not None:
            self._watch(node, result)
        return result


def run(graph: Graph, inputs: Mapping[str, torch.Tensor], watch: Callable[[fx.Node, Any], None] | None = None) -> dict[str, torch.Tensor]:
    """Runs the graph in PyTorch with streamed weights: input name -> tensor in, output name -> tensor out."""
    arguments = [inputs[port.name] for port in graph.inputs]
    with torch.no_grad():
        results = Evaluator(graph.module, graph.weights, watch).run(*arguments)
    return {port.name: result for port, result in zip(graph.outputs, results, strict=True)}


def materialise(graph: Graph, device: str = "cpu") -> Graph:
    """The same graph with every used weight loaded, for repeated runs of a model that fits into the memory of a device."""

    def kept(weight: Weight) -> Weight:
        tensor = weight.load().to(device)
        return replace(weight, load=lambda: tensor)

    loaded = replace(graph, weights={name: kept(weight) for name, weight in graph.used_weights().items()})
    return loaded if device == "cpu" else _on_device(loaded, device)


def _on_device(graph: Graph, device: str) -> Graph:
    """Moves the computed buffers of a graph, and makes operations that create tensors create them there."""
    nodes = copied_nodes(graph.module)
    attributes = {n.target: n for n in nodes.nodes if n.op == "get_attr"}
    module = fx.GraphModule({}, fx.Graph())
    for target in attributes:
        tensor = operator.attrgetter(target)(graph.module)
        setattr(module, _flat(target), tensor if target in graph.weights else tensor.to(device))
    for node in nodes.nodes:
        if "device" in node.kwargs:
            node.kwargs = {**node.kwargs, "device": torch.device(device)}
        if node.op == "get_attr":
            node.target = _flat(node.target)
    weights = {_flat(name): weight for name, weight in graph.weights.items()}
    return replace(graph, module=fx.GraphModule(module, nodes), weights=weights)


def _flat(target: str) -> str:
    return target.replace(".", "_")


def call_nodes(graph: Graph) -> Iterator[fx.Node]:
    """The nodes that compute something."""
    return (n for n in graph.module.graph.nodes if n.op == "call_function")
