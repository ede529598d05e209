"""Graphs with quantized operations for tests: every linear and convolution of a captured graph replaced, scales taken from random data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import dexport.plugins.quantized_conv.reference
import dexport.plugins.quantized_linear.reference  # noqa: F401  (both register their operation)
from dexport.exporter.capture import Input
from dexport.passes.graph import BATCH, Graph, Kind, Weight, call_node, copied_nodes, with_nodes
from dexport.plugins.formats import format_of
from tests.passes.graphs import graph_of


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


def quantized(graph: Graph, form: Form | Mapping[str, Form], table: Callable[[Any], Any] | None = None) -> Graph:
    """Replaces every linear by `dexport::quantized_linear`, and convolutions that `form` names by `dexport::quantized_conv`.

    Args:
        form: of all linears, or by the name of the weight.
        table: list of nodes -> node of the activation's scale; a constant if None.
    """
    nodes = copied_nodes(graph.module)
    weights = dict(graph.weights)
    for node in [n for n in nodes.nodes if n.target in _OPERATIONS]:
        name = str(node.args[1].target)
        one = form.get(name) if not isinstance(form, Form) else form if node.target is _OPERATIONS[0] else None
        if one is None:
            continue
        with nodes.inserting_before(node):
            new = _replacement(graph, nodes, weights, node, name, one, table)
        node.replace_all_uses_with(new)
        nodes.erase_node(node)
    return with_nodes(graph, nodes, weights=weights)


_OPERATIONS = (torch.ops.aten.linear.default, torch.ops.aten.conv2d.default)


def _replacement(graph: Graph, nodes: Any, weights: dict[str, Weight], node: Any, name: str, form: Form, table: Any) -> torch.fx.Node:
    x, _, *rest = node.args
    linear = node.target is _OPERATIONS[0]

    def stored(kind: str, tensor: torch.Tensor | None) -> Any:
        return _attribute(graph, nodes, weights, f"{name}_{kind}", tensor)

    codes, scale, coarse = _codes(weights[name], form)
    if not linear:
        scale = scale.reshape(-1, 1, 1, 1)
    operands = [stored("codes", codes), stored("scale", scale)] + ([stored("global", coarse)] if linear else [])
    activation = None
    if form.mode == "table" and table is not None:
        activation = table(nodes)
    elif form.mode in ("static", "table") or form.micro == "nvfp4":
        activation = stored("activation", torch.tensor(form.scale))
    centre = stored("centre", torch.linspace(-0.3, 0.5, codes.shape[1])) if form.centre else None
    formats = (form.weight, form.activation if form.mode != "none" else "", form.mode)
    if linear:
        tail = (rest[0] if rest else None, activation, centre, *formats, form.block, form.micro)
        return call_node(nodes, torch.ops.dexport.quantized_linear.default, x, *operands, *tail)
    bias, stride, padding, dilation, groups = (*rest, *(None, [1, 1], [0, 0], [1, 1], 1)[len(rest) :])
    return call_node(
        nodes, torch.ops.dexport.quantized_conv.default, x, *operands, bias, activation, *formats, stride, padding, dilation, groups
    )


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
    group = {-1: real.numel(), 0: real[0].numel()}.get(form.group, form.group)
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


class Several(nn.Module):
    """One linear per form, [128] -> [64], every second one without a bias; one output each."""

    def __init__(self, count: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linears = nn.ModuleList(nn.Linear(INPUTS, OUTPUTS, bias=i % 2 == 0) for i in range(count))

    def forward(self, latent: torch.Tensor, scales: torch.Tensor) -> tuple[torch.Tensor, ...]:
        shift = 0 * scales.sum()
        return tuple(linear(latent) + shift for linear in self.linears)


INPUTS, OUTPUTS, BRANCHED_OUTPUTS = 128, 64, 40
_PORTS = (
    Input("latent", (BATCH, 6, INPUTS), torch.float32, Kind.LATENT),
    Input("scales", (1, 2), torch.float32, Kind.STEP),
)


def graph_of_forms(forms: Sequence[Form]) -> Graph:
    """A linear for each form, quantized so; outputs "out_0", ... The tables of `scales` are shared in turn."""
    graph = graph_of(Several(len(forms)), _PORTS, [f"out_{i}" for i in range(len(forms))])
    return quantized(graph, {f"linears.{i}.weight": form for i, form in enumerate(forms)}, table_of_scales("scales"))


def example_of_forms() -> dict[str, torch.Tensor]:
    """Inputs of `graph_of_forms`."""
    torch.manual_seed(1)
    latent = torch.randn(2, 6, INPUTS)
    latent[0, 0] = 0  # a row without any range
    return {"latent": latent, "scales": torch.tensor([[0.03, 0.011]])}


def table_of_scales(port: str) -> Callable[[Any], Any]:
    """Scales of a step as a table in a bundle gives them: the columns of one row, [1, columns], one after the other."""
    column = -1

    def scale(nodes: torch.fx.Graph) -> torch.fx.Node:
        nonlocal column
        column = (column + 1) % 2
        row = next(n for n in nodes.nodes if n.op == "placeholder" and n.name == port)
        return call_node(nodes, torch.ops.aten.slice.Tensor, row, 1, column, column + 1)

    return scale


class Branched(nn.Module):
    """A linear, and a branch beside it unless `rank` is 0.

    Args:
        twice: the branch's result has a second reader.
        kept: the linear's result is an output, too.
    """

    def __init__(self, rank: int, twice: bool = False, kept: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.main = nn.Linear(INPUTS, BRANCHED_OUTPUTS)
        self.down, self.up = nn.Linear(INPUTS, max(rank, 1), bias=False), nn.Linear(max(rank, 1), BRANCHED_OUTPUTS, bias=False)
        self.rank, self.twice, self.kept = rank, twice, kept

    def forward(self, latent: torch.Tensor, scales: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        side = self.up(self.down(latent)) if self.rank else 0 * scales.sum()
        alone = self.main(latent)
        y = alone + side
        return (y, alone) if self.kept else y + side if self.twice else y


def branched_graph(form: Form, rank: int, dtype: torch.dtype = torch.float16, twice: bool = False, kept: bool = False) -> Graph:
    """A linear in a form, with a branch of that rank, in 16 bits."""
    ports = (Input("latent", (BATCH, 6, INPUTS), dtype, Kind.LATENT), Input("scales", (1, 2), dtype, Kind.STEP))
    graph = graph_of(Branched(rank, twice, kept).to(dtype), ports, ["out", "alone"] if kept else ["out"])
    return quantized(graph, {"main.weight": form}, table_of_scales("scales"))
