"""Graphs with quantized operations for tests: every linear and convolution of a captured graph replaced, scales taken from random data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

import dexport.plugins.quantized_conv.reference
import dexport.plugins.quantized_linear.reference  # noqa: F401  (both register their operation)
from dexport.passes.graph import Graph, Weight, call_node, copied_nodes, with_nodes
from dexport.plugins.formats import format_of


@dataclass(frozen=True)
class Form:
    """How the linears of a graph are quantized; `group` 0 is a scale per output channel, -1 one per tensor."""

    weight: str = "int8"
    group: int = 0
    activation: str = "int8"
    mode: str = "static"
    block: int = 0
    micro: str = ""
    centre: bool = False
    scale: float = 0.03


def quantized(graph: Graph, form: Form, table: Callable[[Any], Any] | None = None) -> Graph:
    """Replaces every linear by `dexport::quantized_linear`.

    Args:
        table: list of nodes -> node of the activation's scale; a constant if None.
    """
    nodes = copied_nodes(graph.module)
    weights = dict(graph.weights)
    for node in [n for n in nodes.nodes if n.target is torch.ops.aten.linear.default]:
        x, weight, *rest = node.args
        name = str(weight.target)
        with nodes.inserting_before(node):
            codes, scale, coarse = _codes(weights[name], form)
            operands = [
                _attribute(graph, nodes, weights, f"{name}_{k}", t) for k, t in (("codes", codes), ("scale", scale), ("global", coarse))
            ]
            activation = centre = None
            if table is not None:
                activation = table(nodes)
            elif form.mode in ("static", "table") or form.micro == "nvfp4":
                activation = _attribute(graph, nodes, weights, f"{name}_activation", torch.tensor(form.scale))
            if form.centre:
                centre = _attribute(graph, nodes, weights, f"{name}_centre", torch.linspace(-0.3, 0.5, codes.shape[1]))
            new = call_node(
                nodes,
                torch.ops.dexport.quantized_linear.default,
                x,
                *operands,
                rest[0] if rest else None,
                activation,
                centre,
                form.weight,
                form.activation,
                form.mode,
                form.block,
                form.micro,
            )
        node.replace_all_uses_with(new)
        nodes.erase_node(node)
    return with_nodes(graph, nodes, weights=weights)


def _attribute(graph: Graph, nodes: torch.fx.Graph, weights: dict[str, Weight], name: str, tensor: torch.Tensor | None) -> Any:
    """A new weight `name` of the graph, hollow in the module."""
    if tensor is None:
        return None
    kept = tensor
    weights[name] = Weight(tuple(kept.shape), kept.dtype, lambda: kept, name)
    owner, _, leaf = name.rpartition(".")
    graph.module.get_submodule(owner).register_buffer(leaf, torch.zeros((), dtype=kept.dtype).expand(kept.shape))
    node = nodes.get_attr(name)
    reference = next(n for n in nodes.nodes if n.op == "placeholder").meta["val"]
    node.meta["val"] = reference.fake_mode.from_tensor(torch.empty(kept.shape, dtype=kept.dtype))
    return node


def _codes(weight: Weight, form: Form) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Codes, scales and global scale of a weight, rounded to nearest with absmax scales."""
    number, real = format_of(form.weight), weight.load().float()
    group = {-1: real.numel(), 0: real.shape[1]}.get(form.group, form.group)
    blocks = real.reshape(-1, group)
    scale = blocks.abs().amax(1, keepdim=True).clamp_min(1e-6) / number.largest
    coarse = None
    if form.micro == "nvfp4":
        coarse = scale.max() / 448
        scale = (scale / coarse).to(torch.float8_e4m3fn)
    fine = scale.float() * (1 if coarse is None else coarse)
    codes = number.encode(number.round(blocks / fine)).reshape(real.shape)
    shape = (1, 1) if form.group == -1 else (real.shape[0], -1)
    return codes, scale.reshape(shape), coarse


def table_of_scales(port: str) -> Callable[[Any], Any]:
    """Scales of a step as a table in a bundle gives them: the columns of one row, [1, columns], one after the other."""
    column = -1

    def scale(nodes: torch.fx.Graph) -> torch.fx.Node:
        nonlocal column
        column += 1
        row = next(n for n in nodes.nodes if n.op == "placeholder" and n.name == port)
        return call_node(nodes, torch.ops.aten.slice.Tensor, row, 1, column, column + 1)

    return scale
