"""A unit as a function: the nodes of a span, run with trial weights and scales (`reconstruction.Unit`), or as the model has them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from dexport.passes.dependence import is_size
from dexport.passes.graph import Graph, value
from dexport.passes.quantization.reconstruction import Outputs, Trial
from dexport.passes.quantization.sites import Site, sites
from dexport.passes.quantization.unit_site import Mixed, PartValues, SiteFunction, decided_values, site_function
from dexport.passes.quantization.units import Span
from dexport.passes.quantization.values import SiteValues

ROW = "row"
"""Name of the input that says which rows of the calibration a batch is made of, int64 [B]."""

Call = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]
"""(what enters, bias) -> what a site gives."""


@dataclass(frozen=True)
class Indexed:
    """Values that several rows of the calibration share, such as those of a step or of a prompt.

    Attributes:
        values: [R, ...], or a list of such.
        index: the entry of `values` of each row, int64 [S]; None: every row has all of `values`, which has no axis of rows.
    """

    values: Any
    index: torch.Tensor | None

    def rows(self, row: torch.Tensor) -> Any:
        """The values of some rows, [B, ...]."""
        if self.index is None:
            return self.values
        chosen = self.index[row]
        return [v[chosen] for v in self.values] if isinstance(self.values, list | tuple) else self.values[chosen]


class Computation:
    """Runs some nodes of a graph.

    Args:
        nodes: in graph order.
        kept: weights stay in memory from one run to the next.
    """

    def __init__(self, graph: Graph, nodes: Iterable[fx.Node], kept: bool) -> None:
        self._graph, self.nodes, self._kept = graph, tuple(nodes), kept
        self._attributes: dict[fx.Node, torch.Tensor] = {}
        self._last = {source: node for node in self.nodes for source in node.all_input_nodes}

    def run(self, values: dict[fx.Node, Any], batch: int, call: Mapping[fx.Node, Call], wanted: Iterable[fx.Node]) -> dict[fx.Node, Any]:
        """The values of the wanted nodes.

        Args:
            values: of what the nodes read from outside, for `batch` rows; used up.
            call: what stands for a site's node.
        """
        results, asked = {}, set(wanted)
        for node in self.nodes:
            if node in call:
                x, _, *rest = node.args
                bias = rest[0] if rest else None
                result = call[node](self._get(x, values, batch), None if bias is None else self._get(bias, values, batch))
            else:
                result = self._computed(node, values, batch)
            values[node] = result
            if node in asked:
                results[node] = result
            for source in node.all_input_nodes:
                if self._last[source] is node:
                    values.pop(source, None)
        return results

    def _computed(self, node: fx.Node, values: dict[fx.Node, Any], batch: int) -> Any:
        arguments: Any = fx.node.map_arg((node.args, node.kwargs), lambda n: self._get(n, values, batch))
        target: Any = node.target
        return target(*arguments[0], **arguments[1])

    def _get(self, node: Any, values: dict[fx.Node, Any], batch: int) -> Any:
        """A value that is known, a weight, a size, or a constant, computed when it is needed."""
        if node in values:
            return values[node]
        if node.op == "get_attr":
            return self._attribute(node)
        if is_size(node):
            return _size(node, batch)
        assert node.op == "call_function", node
        return self._computed(node, values, batch)

    def _attribute(self, node: fx.Node) -> torch.Tensor:
        if node in self._attributes:
            return self._attributes[node]
        weight = self._graph.weights.get(str(node.target))
        tensor: torch.Tensor = weight.load() if weight is not None else operator.attrgetter(str(node.target))(self._graph.module)
        if self._kept:
            self._attributes[node] = tensor
        return tensor


def _size(node: fx.Node, batch: int) -> int:
    """A size, of which only the batch is not fixed."""
    size = value(node)
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return int(expression.subs(dict.fromkeys(expression.free_symbols, batch)))


class QuantizedSites:
    """What stands for the quantized sites among some nodes, as they are decided; codes are read once."""

    def __init__(self, graph: Graph, nodes: Iterable[fx.Node], decided: Mapping[str, SiteValues]) -> None:
        known = {site.node: site for site in sites(graph)}
        here = ((node, known[node.name]) for node in nodes if node.name in known and known[node.name].name in decided)
        self._functions = {node: (_function(graph, site, node, decided), decided_values(decided[site.name])) for node, site in here}

    def __bool__(self) -> bool:
        return bool(self._functions)

    def calls(self, steps: torch.Tensor) -> dict[fx.Node, Call]:
        """For rows at these steps [B]."""
        return {node: _bound(function, parts, steps, lambda exact, rounded: rounded) for node, (function, parts) in self._functions.items()}


def _function(graph: Graph, site: Site, node: fx.Node, decided: Mapping[str, SiteValues]) -> SiteFunction:
    return site_function(site, node, decided[site.name], graph.weights[site.weight])


def _bound(function: SiteFunction, parts: list[PartValues], steps: torch.Tensor, mixed: Mixed) -> Call:
    return lambda x, bias: function(x, bias, parts, steps, mixed)


class UnitFunction:
    """What a span makes of a batch.

    Args:
        decided: values of the quantized sites of the span.
        static: values of nodes that are known for all rows of the calibration.
        steps: the step of each row, int64 [S].
        sizes: root mean square of every output, by which they are divided where there are several.
    """

    def __init__(
        self,
        graph: Graph,
        span: Span,
        decided: Mapping[str, SiteValues],
        static: Mapping[fx.Node, Indexed],
        steps: torch.Tensor,
        sizes: Mapping[fx.Node, float],
    ) -> None:
        self._span, self._static, self._steps, self._sizes = span, static, steps, sizes
        self._computation = Computation(graph, span.nodes, kept=True)
        by_name = {node.name: node for node in span.nodes}
        self._sites = {by_name[site.node]: site for site in span.sites}
        self._functions = {n: _function(graph, s, n, decided) for n, s in self._sites.items() if s.name in decided}
        self._scales = scale_names(span, decided)
        self._decided = {s.name: decided_values(decided[s.name]) for s in self._sites.values() if s.name in decided}

    def __call__(self, inputs: Mapping[str, torch.Tensor], trial: Trial) -> Outputs:
        """The outputs, flattened and side by side where there are several; of the sites inside too, [B, ...].

        Args:
            inputs: ROW, and what the span reads that is not static, by node.
        """
        row = inputs[ROW]
        steps = self._steps[row]
        calls: dict[fx.Node, Call] = {
            node: self._call(self._sites[node].name, function, trial, steps, trial.mixed) for node, function in self._functions.items()
        }
        values = {n: self._static[n].rows(row) if n in self._static else inputs[n.name] for n in self._span.inputs}
        found = self._computation.run(values, len(row), calls, (*self._span.outputs, *self._sites))
        output = joined([found[node] for node in self._span.outputs], [self._sizes[node] for node in self._span.outputs])
        return Outputs(output, {site.name: found[node] for node, site in self._sites.items()})

    def _call(self, name: str, function: SiteFunction, trial: Trial, steps: torch.Tensor, mixed: Mixed) -> Call:
        parts = []
        for number, part in enumerate(self._decided[name]):
            key = part_key(name, number)
            parts.append(PartValues(trial.weights.get(key, part.weight), trial.scales.get(self._scales.get(key, ""), part.scale)))
        return _bound(function, parts, steps, mixed)


def part_key(site: str, number: int) -> str:
    """The name of a part of a site in a `Trial`."""
    return f"{site}/{number}"


def scale_names(span: Span, decided: Mapping[str, SiteValues]) -> dict[str, str]:
    """Part -> the name of its activation scale in a `Trial`: sites that share one (q, k and v) go on sharing what is learned."""
    names: dict[str, str] = {}
    first: dict[int, str] = {}
    for site in span.sites:
        for number, part in enumerate(decided[site.name].parts if site.name in decided else ()):
            if part.activations is not None and part.activations.scale is not None:
                key = part_key(site.name, number)
                names[key] = first.setdefault(id(part.activations.scale), key)
    return names


def joined(outputs: list[torch.Tensor], sizes: list[float]) -> torch.Tensor:
    """One output as it is; several divided by their sizes, flattened and side by side, so that each counts alike; float32."""
    if len(outputs) == 1:
        return outputs[0].float()
    return torch.cat([output.float().flatten(1) / size for output, size in zip(outputs, sizes, strict=True)], 1)
