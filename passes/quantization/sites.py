"""Sites: the linears and convolutions of a graph that can be quantized, by the names of their weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import fx

from dexport.passes.dependence import is_size
from dexport.passes.graph import Graph, Kind

aten = torch.ops.aten
_LINEAR = {aten.linear.default}
_CONVOLUTIONS = {aten.conv1d.default, aten.conv2d.default, aten.conv3d.default}


@dataclass(frozen=True)
class Site:
    """One layer with a weight.

    Attributes:
        name: path of the weight, "transformer_blocks.0.attn1.to_q"; with "#2" and so on where one weight serves several nodes.
        node: name of its node in the graph.
        weight: `get_attr` target of the weight, [O, I] or [O, I/groups, K...].
        source: name of the node whose value it reads; sites with one source see the same activations.
    """

    name: str
    kind: Literal["linear", "conv"]
    node: str
    weight: str
    shape: tuple[int, ...]
    source: str

    @property
    def inputs(self) -> int:
        """Channels of the activation: size of the axis that ranges per channel belong to (per group for grouped convolutions)."""
        return self.shape[1]

    @property
    def parameters(self) -> int:
        """Elements of the weight."""
        total = 1
        for size in self.shape:
            total *= size
        return total


def sites(graph: Graph) -> tuple[Site, ...]:
    """Every linear and convolution whose weight is read from the checkpoint, in graph order."""
    found: list[Site] = []
    seen: Counter[str] = Counter()
    for node in graph.module.graph.nodes:
        kind = kind_of(node)
        if kind is None:
            continue
        source, weight = node.args[0], node.args[1]
        if not (isinstance(weight, fx.Node) and weight.op == "get_attr" and weight.target in graph.weights):
            continue
        target = str(weight.target)
        name = site_name(target)
        seen[name] += 1
        unique = name if seen[name] == 1 else f"{name}#{seen[name]}"
        found.append(Site(unique, kind, node.name, target, graph.weights[target].shape, source.name))
    return tuple(found)


def kind_of(node: fx.Node) -> Literal["linear", "conv"] | None:
    """Which kind of site a node can be."""
    if node.target in _LINEAR:
        return "linear"
    return "conv" if node.target in _CONVOLUTIONS else None


def site_name(weight: str) -> str:
    """The name of the site of a `get_attr` target."""
    return weight.removeprefix("model.").removesuffix(".weight")


def channel_axis(kind: Literal["linear", "conv"]) -> int:
    """The axis of the activation that holds channels: the last of a linear, axis 1 of a convolution."""
    return -1 if kind == "linear" else 1


def ends(graph: Graph) -> frozenset[str]:
    """Names of the first sites that the latent meets and of the last before the output: those that most recipes keep."""
    named = {site.node: site.name for site in sites(graph)}
    entering = list(graph.placeholders().values())
    latent = [node for port, node in zip(graph.inputs, entering) if Kind.LATENT in port.kinds] or entering
    result = next(n for n in graph.module.graph.nodes if n.op == "output")
    first = _nearest(latent, lambda node: node.users, named)
    last = _nearest([result], lambda node: node.all_input_nodes, named)
    return frozenset(named[name] for name in first | last)


def _nearest(start: Iterable[fx.Node], neighbours: Callable[[fx.Node], Iterable[fx.Node]], named: Mapping[str, str]) -> set[str]:
    """The named nodes that are met first, walking from `start`."""
    found, seen, stack = set(), set(start), list(start)
    while stack:
        for node in neighbours(stack.pop()):
            if node in seen or is_size(node):
                continue
            seen.add(node)
            if node.name in named:
                found.add(node.name)
            else:
                stack.append(node)
    return found
