"""Flow: all samples on their way through a graph, unit by unit, unquantized and quantized side by side.

Reconstruction needs at every unit what the unquantized model feeds it, and what the model whose earlier units are quantized already does
("asymmetric" in Q-Diffusion, arXiv 2302.04304). Both are carried forward: only what later nodes still read is held, so the whole costs one
run of each model over the samples. Values that depend on the step or the prompt alone are held once per step or prompt.

Notation: S rows of the calibration: a sample and a half of the guidance.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import fx

from dexport.errors import Failure
from dexport.passes.dependence import NOTHING, dependence, is_size
from dexport.passes.graph import Graph, Kind, is_tensor
from dexport.passes.quantization.unit import Computation, Indexed, QuantizedSites, joined
from dexport.passes.quantization.units import Span, has_rows
from dexport.passes.quantization.values import SiteValues

_IN_MEMORY = 64 << 20
"""Larger values are files that are mapped, which the system may drop from memory."""

Live = dict[fx.Node, torch.Tensor]


class Flow:
    """Samples at some place of the graph.

    Args:
        entering: input name -> its values for all rows.
        steps: the step of each row, int64 [S].
        decided: values of quantized sites; those of units that are fitted are not used before `leave`.
        folder: for what is too large for memory.
        batch: rows that are computed at a time.

    Attributes:
        static: values that are known from the start: inputs and what does not depend on the latent.
        exact, rounded: values of the unquantized and of the quantized model that nodes ahead still read, [S, ...].
    """

    def __init__(
        self,
        graph: Graph,
        entering: Mapping[str, Indexed],
        steps: torch.Tensor,
        decided: Mapping[str, SiteValues],
        folder: Path,
        batch: int = 16,
    ) -> None:
        self._graph, self.steps, self._decided, self._folder, self._batch = graph, steps, decided, folder, batch
        self._order = list(graph.module.graph.nodes)
        self._every = torch.arange(len(steps))
        self._kinds = dependence(graph)
        self.static: dict[fx.Node, Indexed] = {node: entering[name] for name, node in graph.placeholders().items()}
        self._add_static()
        self._done = {node for node in self._order if Kind.LATENT not in self._kinds[node] or node in self.static or is_size(node)}
        self.exact: Live = {}
        self.rounded: Live = {}

    @property
    def rows(self) -> int:
        """S."""
        return len(self.steps)

    def reach(self, span: Span) -> None:
        """Goes on to where all inputs of a unit are known."""
        last, own = self._order.index(span.nodes[-1]), set(span.nodes)
        ahead = {node for node in self._order[: last + 1] if node not in self._done and node not in own and node.op == "call_function"}
        ahead |= {user for node in ahead if not is_tensor(node) for user in node.users}
        nodes = [node for node in self._order if node in ahead]
        if nodes:
            self._advance(nodes)

    def exact_outputs(self, span: Span, inner: bool) -> tuple[Live, Live]:
        """What the unquantized unit makes: its outputs, and if asked the outputs of its sites; nothing moves."""
        heads = {site.node for site in span.sites} if inner else set()
        wanted = [node for node in span.nodes if node in span.outputs or node.name in heads]
        found = self._computed(span.nodes, wanted, self.exact, {})
        return {node: found[node] for node in span.outputs}, {node: t for node, t in found.items() if node.name in heads}

    def inputs(self, span: Span) -> dict[str, torch.Tensor]:
        """What the quantized model feeds a unit, apart from what is static; by name of the node, [S, ...]."""
        return {node.name: self.rounded[node] for node in span.inputs if node not in self.static}

    def leave(self, span: Span, exact: Live, decided: Mapping[str, SiteValues]) -> None:
        """Goes on behind a unit.

        Args:
            exact: its outputs in the unquantized model.
            decided: values of its quantized sites.
        """
        rounded = self._computed(span.nodes, span.outputs, self.rounded, decided)
        self.exact |= exact
        self.rounded |= rounded
        self._finish(span.nodes)

    def _advance(self, nodes: list[fx.Node]) -> None:
        inside = {*nodes, *self._done}
        wanted = [n for n in nodes if is_tensor(n) and any(u not in inside and not is_size(u) for u in n.users)]
        exact = self._computed(nodes, wanted, self.exact, {})
        read = {source for node in nodes for source in node.all_input_nodes}
        same = all(self.exact[n] is self.rounded[n] for n in read & self.exact.keys())
        quantized = QuantizedSites(self._graph, nodes, self._decided)
        self.rounded |= exact if same and not quantized else self._computed(nodes, wanted, self.rounded, self._decided)
        self.exact |= exact
        self._finish(nodes)

    def _finish(self, nodes: Iterable[fx.Node]) -> None:
        """Drops what nobody ahead reads."""
        self._done.update(nodes)
        for live in (self.exact, self.rounded):
            for node in [n for n in live if all(u in self._done for u in n.users)]:
                del live[node]

    def _computed(self, nodes: Iterable[fx.Node], wanted: Iterable[fx.Node], live: Live, decided: Mapping[str, SiteValues]) -> Live:
        """The wanted values for all rows."""
        computation = Computation(self._graph, nodes, kept=False)
        read = {s for node in computation.nodes for s in node.all_input_nodes}
        quantized = QuantizedSites(self._graph, computation.nodes, decided)
        results: Live = {}
        for row in torch.split(self._every, self._batch):
            values = {n: self.static[n].rows(row) for n in read & self.static.keys()} | {n: live[n][row] for n in read & live.keys()}
            with torch.no_grad():
                found = computation.run(values, len(row), quantized.calls(self.steps[row]), wanted)
            for node, part in found.items():
                if node not in results:
                    results[node] = self._space(node, part)
                results[node][row[0] : row[-1] + 1] = part
        return results

    def _space(self, node: fx.Node, part: torch.Tensor) -> torch.Tensor:
        """Room for all rows of a value."""
        if not has_rows(node):
            expected = f"a value with a row per picture where units meet, at {node.name}"
            raise Failure("reconstruction", expected=expected, got=f"shape {list(part.shape)}", fix="choose a larger unit in the recipe")
        return space((self.rows, *part.shape[1:]), part.dtype, self._folder)

    def _add_static(self) -> None:
        """Computes what depends on the step and the prompt alone, once per step or prompt where that is possible."""
        for node in self._order:
            if node.op != "call_function" or is_size(node) or self._kinds[node] == NOTHING or Kind.LATENT in self._kinds[node]:
                continue
            read = [n for n in node.all_input_nodes if n in self.static]
            indices = {id(i): i for n in read if (i := self.static[n].index) is not None}
            index = None if not indices else next(iter(indices.values())) if len(indices) == 1 else self._every
            given = {n: self.static[n].values if len(indices) < 2 else self.static[n].rows(self._every) for n in read}
            count = max((len(v) for n, v in given.items() if self.static[n].index is not None and isinstance(v, torch.Tensor)), default=1)
            with torch.no_grad():
                found = Computation(self._graph, [node], kept=False).run(given, count, {}, [node])
            self.static[node] = Indexed(found[node], index)


def space(shape: tuple[int, ...], dtype: torch.dtype, folder: Path) -> torch.Tensor:
    """An uninitialised tensor, in a file without a name if it is large: the file goes with the tensor."""
    elements = math.prod(shape)
    if elements * dtype.itemsize <= _IN_MEMORY:
        return torch.empty(shape, dtype=dtype)
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        return torch.from_file(file.name, shared=True, size=elements, dtype=dtype).reshape(shape)


def joined_rows(outputs: Live, sizes: Mapping[fx.Node, float], folder: Path) -> torch.Tensor:
    """`joined` of outputs with all their rows, some rows at a time."""
    listed = list(outputs.values())
    if len(listed) == 1:
        return listed[0].float()
    rows = len(listed[0])
    result = space((rows, sum(t[0].numel() for t in listed)), torch.float32, folder)
    for row in torch.split(torch.arange(rows), 64):
        result[row[0] : row[-1] + 1] = joined([t[row] for t in listed], [sizes[node] for node in outputs])
    return result
