"""Quantize: decided values -> a graph in which sites are dialect operations, with plain ATen around them.

    linear(x, W, bias)  ->  quantized_linear(rotate(x * m), codes(rotate(W / m)), ...) + bias [+ up(down(rotate(x * m)))]

In the order of `SiteValues`: leading tokens may bypass, channels are multiplied, rotated, perhaps split into groups with a scale of their
own (whose products are summed), and a low-rank branch is added. The bias belongs to the first part. Sites that read one value with the
same multiplier and signs share the products; the multiplier goes into an adaptive layer norm in front (modulation.py). Nodes carry their
site in `meta["site"]`.

Scales of a step table come in through one more input, `step_values_quantization` [1, K]; the rows for the calibrated steps are returned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from dexport.passes.graph import Graph, Kind, Port, Weight, call_node, copied_nodes, hollow, value, with_attributes
from dexport.passes.quantization.modulation import modulation
from dexport.passes.quantization.rotation import rotation_nodes
from dexport.passes.quantization.sites import Site, sites
from dexport.passes.quantization.step_table import QUANTIZATION_VALUES
from dexport.passes.quantization.values import ActivationValues, QuantizedPart, SiteValues
from dexport.plugins.quantized_conv.reference import quantized_conv as _register_conv  # noqa: F401 - registers the operation
from dexport.plugins.quantized_linear.reference import quantized_linear as _register_linear  # noqa: F401

aten = torch.ops.aten


@dataclass(frozen=True)
class Quantized:
    """The new graph, and the rows of its packed step values, float32 [T, K] (None if it has none)."""

    graph: Graph
    rows: torch.Tensor | None


def quantize(graph: Graph, values: Mapping[str, SiteValues]) -> Quantized:
    """Replaces the named sites of a graph.

    Raises:
        KeyError: a name is no site of the graph.
    """
    known = {site.name: site for site in sites(graph)}
    rewriter = _Rewriter(graph, _table_columns(values), {known[name].node: found for name, found in values.items() if name in known})
    if unknown := values.keys() - known.keys():
        raise KeyError(sorted(unknown)[0])
    for name, site in known.items():  # in graph order: what sites share stands in front of the first
        if name in values:
            rewriter.replace(site, values[name])
    return rewriter.finish()


def _table_columns(values: Mapping[str, SiteValues]) -> list[torch.Tensor]:
    """Every per-step tensor [T, ...], once, in order."""
    found: dict[int, torch.Tensor] = {}
    for decided in values.values():
        for part in decided.parts:
            if part.activations is not None and part.activations.mode == "table":
                found |= {id(t): t for t in (part.activations.scale, part.activations.centre) if t is not None}
    return list(found.values())


class _Rewriter:
    """The node list being edited and what was made on the way."""

    def __init__(self, graph: Graph, columns: list[torch.Tensor], decided: Mapping[str, SiteValues]) -> None:
        self._graph, self._columns, self._decided = graph, columns, decided
        self._nodes = copied_nodes(graph.module)
        self._by_name = {n.name: n for n in self._nodes.nodes}
        self._new: dict[str, torch.Tensor] = {}
        self._weights: dict[str, Weight] = dict(graph.weights)
        self._made: dict[Any, fx.Node] = {}
        self._packed: fx.Node | None = None
        self._ports = graph.inputs
        if columns:
            self._packed, self._ports = self._enter()

    def _enter(self) -> tuple[fx.Node, tuple[Port, ...]]:
        width = sum(column[0].numel() for column in self._columns)
        last = [n for n in self._nodes.nodes if n.op == "placeholder"][-1]
        with self._nodes.inserting_after(last):
            node = self._nodes.placeholder(QUANTIZATION_VALUES)
        node.meta["val"] = value(last).new_empty((1, width), dtype=torch.float32)
        return node, (*self._graph.inputs, Port(QUANTIZATION_VALUES, torch.float32, (1, width), frozenset([Kind.STEP])))

    def finish(self) -> Quantized:
        """The edited graph, without what nothing reads any more."""
        rows = torch.cat([column.reshape(len(column), -1).float() for column in self._columns], 1) if self._columns else None
        graph = with_attributes(self._graph, self._nodes, self._new, inputs=self._ports, weights=self._weights)
        return Quantized(replace(graph, weights=graph.used_weights()), rows)

    def replace(self, site: Site, decided: SiteValues) -> None:
        """Puts the operations of one site in the place of its node."""
        node = self._by_name[site.node]
        with self._nodes.inserting_before(node):
            write = self._linear if site.kind == "linear" else self._conv
            result = write(site, node, decided)
        result.meta["site"] = site.name
        node.replace_all_uses_with(result)
        self._nodes.erase_node(node)

    def _linear(self, site: Site, node: fx.Node, decided: SiteValues) -> fx.Node:
        x, bias = node.args[0], node.args[2] if len(node.args) > 2 else None
        assert isinstance(x, fx.Node)
        head = None
        if decided.bypass:
            head = self._call(aten.linear.default, self._slice(x, 0, decided.bypass), node.args[1], bias)
            x = self._slice(x, decided.bypass, None)
        x = self._prepared(site, x, decided)
        result: fx.Node | None = None
        for number, part in enumerate(decided.parts):
            name = f"{site.name}.{number}"
            picked = self._picked(name, x, part.channels, value(x).dim() - 1)
            piece = self._quantized_linear(name, picked, part, bias if number == 0 else None, None if decided.bypass else node)
            piece.meta["site"] = site.name
            result = piece if result is None else self._like(result, aten.add.Tensor, result, piece)
        assert result is not None
        if decided.branch is not None:
            down, up = (self._wide(self._weight(f"{site.name}.{n}", w), x) for n, w in zip(("down", "up"), decided.branch))
            side = self._like(result, aten.linear.default, self._call(aten.linear.default, x, down), up)
            result = self._like(result, aten.add.Tensor, result, side)
        return result if head is None else self._call(aten.cat.default, [head, result], 1)

    def _wide(self, weight: fx.Node, x: fx.Node) -> fx.Node:
        """A 16-bit weight in the dtype of x."""
        dtype = value(x).dtype
        return weight if value(weight).dtype is dtype else self._call(aten._to_copy.default, weight, dtype=dtype)

    def _slice(self, x: fx.Node, start: int, end: int | None) -> fx.Node:
        return self._once((x, start, end), lambda: self._call(aten.slice.Tensor, x, 1, start, 2**63 - 1 if end is None else end))

    def _prepared(self, site: Site, x: fx.Node, decided: SiteValues) -> fx.Node:
        """x multiplied and rotated."""
        if decided.multiplier is not None:
            x = self._multiplied(site, x, decided.multiplier)
        return x if decided.signs is None else self._rotated(site, x, decided.signs)

    def _multiplied(self, site: Site, x: fx.Node, m: torch.Tensor) -> fx.Node:
        def write() -> fx.Node:
            factor = self._real(f"{site.name}.multiplier", m, x)
            found = modulation(x) if self._only_multiplied(x, m) else None
            if found is None:
                return self._like(x, aten.mul.Tensor, x, factor)
            scale, shift = (self._multiplied_row(row, factor) for row in (found.scale, found.shift))
            return self._like(x, aten.add.Tensor, self._like(x, aten.mul.Tensor, found.normal, scale), shift)

        return self._once((x, id(m)), write)

    def _multiplied_row(self, row: fx.Node, factor: fx.Node) -> fx.Node:
        same = value(row).shape[-1] == len(value(factor))
        return self._like(row, aten.mul.Tensor, row, factor) if same else self._call(aten.mul.Tensor, row, factor)

    def _only_multiplied(self, x: fx.Node, m: torch.Tensor) -> bool:
        """Whether every reader of x wants it times m."""
        readers = [self._decided.get(user.name) for user in x.users]
        return all(found is not None and found.multiplier is m and not found.bypass for found in readers)

    def _rotated(self, site: Site, x: fx.Node, signs: torch.Tensor) -> fx.Node:
        def write() -> fx.Node:
            return rotation_nodes(self._nodes, x, signs, lambda name, tensor: self._real(f"{site.name}.{name}", tensor, x))

        return self._once((x, "rotated", tuple(signs.tolist())), write)

    def _picked(self, name: str, x: fx.Node, channels: tuple[int, ...] | None, axis: int) -> fx.Node:
        """The channels of a part, which lie on `axis`: a slice where they are neighbours, else an index."""
        if channels is None:
            return x
        first, last = channels[0], channels[-1]
        if channels == tuple(range(first, last + 1)):
            return self._once((x, channels), lambda: self._call(aten.slice.Tensor, x, axis, first, last + 1))

        def select() -> fx.Node:
            index = self._attribute(f"{name}.channels", torch.tensor(channels))
            return self._call(aten.index_select.default, x, axis, index)

        return self._once((x, channels), select)

    def _quantized_linear(self, name: str, x: fx.Node, part: QuantizedPart, bias: Any, like: fx.Node | None) -> fx.Node:
        codes, scale, coarse = self._codes(name, part)
        a = part.activations or ActivationValues("", "none")
        scaled = self._activation(f"{name}.activation_scale", a.scale, a.mode, x, tokens=True)
        centre = self._activation(f"{name}.centre", a.centre, a.mode, x, tokens=False)
        operation = torch.ops.dexport.quantized_linear.default
        arguments = (x, codes, scale, coarse, bias, scaled, centre, part.format, a.format, a.mode, a.block, a.micro)
        return self._call(operation, *arguments) if like is None else self._like(like, operation, *arguments)

    def _conv(self, site: Site, node: fx.Node, decided: SiteValues) -> fx.Node:
        spatial = len(site.shape) - 2
        arguments: tuple[Any, ...] = (*node.args, *(None, 1, 0, 1, 1)[len(node.args) - 2 :])
        x, _, bias, stride, padding, dilation, groups = arguments
        assert isinstance(x, fx.Node)
        assert decided.multiplier is None and decided.signs is None and decided.branch is None and not decided.bypass
        sizes = [list(v) if isinstance(v, list | tuple) else [v] * spatial for v in (stride, padding, dilation)]
        result: fx.Node | None = None
        for number, part in enumerate(decided.parts):
            name = f"{site.name}.{number}"
            picked = self._picked(name, x, part.channels, 1)
            piece = self._quantized_conv(name, picked, part, bias if number == 0 else None, sizes, groups)
            piece.meta["site"] = site.name
            result = piece if result is None else self._like(result, aten.add.Tensor, result, piece)
        assert result is not None
        return result

    def _quantized_conv(self, name: str, x: fx.Node, part: QuantizedPart, bias: Any, sizes: list[list[Any]], groups: Any) -> fx.Node:
        codes, scale, _ = self._codes(name, part)
        a = part.activations or ActivationValues("", "none")
        scaled = self._activation(f"{name}.activation_scale", a.scale, a.mode, x, tokens=False)
        operation = torch.ops.dexport.quantized_conv.default
        return self._call(operation, x, codes, scale, bias, scaled, part.format, a.format, a.mode, *sizes, groups)

    def _codes(self, name: str, part: QuantizedPart) -> tuple[fx.Node, fx.Node, fx.Node | None]:
        coarse = None if part.coarse is None else self._weight(f"{name}.coarse", part.coarse)
        return self._weight(f"{name}.codes", part.codes), self._weight(f"{name}.scale", part.scale), coarse

    def _activation(self, name: str, tensor: torch.Tensor | None, mode: str, x: fx.Node, *, tokens: bool) -> fx.Node | None:
        """A scale or centre: a constant, or its columns of the packed step values, which are one per token or else one per channel."""
        if tensor is None:
            return None
        if mode == "table":
            return self._from_table(tensor, x, tokens)
        return self._once((id(tensor), value(x).dtype), lambda: self._real(name, tensor, x))

    def _from_table(self, tensor: torch.Tensor, x: fx.Node, tokens: bool) -> fx.Node:
        packed = self._packed
        assert packed is not None
        start = sum(c[0].numel() for c in self._columns[: next(i for i, c in enumerate(self._columns) if c is tensor)])
        dtype = value(x).dtype

        def cut() -> fx.Node:
            piece = self._call(aten.slice.Tensor, packed, 1, start, start + tensor[0].numel())
            per_token = tokens and tensor[0].numel() > 1
            shaped = self._call(aten.reshape.default, piece, [-1, 1]) if per_token else piece
            return shaped if dtype is torch.float32 else self._call(aten._to_copy.default, shaped, dtype=dtype)

        return self._once((id(tensor), dtype), cut)

    def _weight(self, name: str, weight: Weight) -> fx.Node:
        self._weights[name] = weight
        return self._attribute(name, hollow(weight))

    def _real(self, name: str, tensor: torch.Tensor, x: fx.Node) -> fx.Node:
        """A small constant in the dtype of x."""
        return self._attribute(name, tensor.to(value(x).dtype) if tensor.is_floating_point() else tensor)

    def _attribute(self, name: str, tensor: torch.Tensor) -> fx.Node:
        if name in self._new:
            return self._once(("attribute", name), lambda: self._nodes.get_attr(name))
        self._new[name] = tensor
        node = self._nodes.get_attr(name)
        mode = next(v.fake_mode for n in self._nodes.nodes if hasattr(v := n.meta.get("val"), "fake_mode"))
        node.meta["val"] = mode.from_tensor(tensor, static_shapes=True)
        self._made["attribute", name] = node
        return node

    def _once(self, key: Any, make: Callable[[], fx.Node]) -> fx.Node:
        """A node that sites share, made in front of the first."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def _like(self, like: fx.Node, target: Callable[..., Any], *arguments: Any) -> fx.Node:
        """A call whose value has the shape and dtype of another node's: running the operation on symbolic sizes only to know costs more."""
        node = self._nodes.call_function(target, arguments)
        node.meta["val"] = value(like)
        return node

    def _call(self, target: Callable[..., Any], *arguments: Any, **options: Any) -> fx.Node:
        if options:
            node = self._nodes.call_function(target, arguments, options)
            node.meta["val"] = target(*(value(a) if isinstance(a, fx.Node) else a for a in arguments), **options)
            return node
        return call_node(self._nodes, target, *arguments)
