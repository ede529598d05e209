"""Estimated latency of a pipeline on a device: one step of the denoiser, layer by layer, and a whole picture.

A treatment that is only planned costs what its operation would, with its low-rank branch; balancing, rotation, splits and bypassed tokens
are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from torch import fx

from dexport.exporter.operations import Operations, form_of
from dexport.exporter.plan import Plan
from dexport.exporter.split import Split
from dexport.passes.graph import BATCH, STEPS, Graph, call_nodes
from dexport.passes.quantization.recipe import Treatment
from dexport.passes.quantization.sites import Site
from dexport.runtime.program import Program, Run
from dexport.targets.latency import total
from dexport.targets.target import Target


@dataclass(frozen=True)
class StepLatency:
    """Time of one step of the denoiser.

    Attributes:
        loop: unquantized.
        rows: of its batch.
        calls: of the loop in a step: 2 where the halves of guidance run in turn.
    """

    loop: Graph
    target: Target
    rows: int
    calls: int = 1

    def layer(self, site: Site, treatment: Treatment) -> float:
        """Milliseconds of one layer under a treatment, in all calls of a step."""
        weights, activations = treatment.weights, treatment.activations
        if weights is None:
            form = None
        else:
            formats = (weights.format.split("|")[0], "" if activations is None else activations.format.split("|")[0])
            form = form_of(*formats, weights.block, self._operations.wide(self._nodes[site.node]))
        rank = 0 if treatment.low_rank is None else treatment.low_rank.rank
        return self.calls * total(self._operations.layer(self._nodes[site.node], form, rank), self.target)

    def others(self, sites: Iterable[Site]) -> float:
        """Milliseconds of everything but these layers, unquantized."""
        kept = math.fsum(self.layer(site, Treatment()) for site in sites)
        return max(self.calls * total(self._operations.all(), self.target) - kept, 0.0)

    @cached_property
    def _operations(self) -> Operations:
        return Operations(self.loop, {BATCH: self.rows, STEPS: 1})

    @cached_property
    def _nodes(self) -> dict[str, fx.Node]:
        return {node.name: node for node in call_nodes(self.loop)}


def step_latency(loop: Graph, decided: Plan) -> StepLatency:
    """Time of a step for the largest batch of a build, with guidance where the pipeline has it."""
    halves = 2 if decided.guided else 1
    together = halves if decided.options.guidance_batching else 1
    return StepLatency(loop, decided.target, together * decided.options.batch, halves // together)


def picture_latency(split: Split, program: Program, target: Target, batch: int = 1) -> dict[str, float]:
    """Component -> milliseconds in one run of a program, all its calls together."""
    graphs = {graph.name: graph for graph in split.graphs()}
    known: dict[tuple[str, tuple[tuple[str, int], ...]], float] = {}
    found: dict[str, float] = {}
    for _, instruction in program.instructions():
        if not isinstance(instruction, Run):
            continue
        graph = graphs[instruction.component]
        sizes = _sizes(graph, instruction, program, batch)
        key = (graph.name, tuple(sorted(sizes.items())))
        if key not in known:
            known[key] = total(Operations(graph, sizes).all(), target)
        found[graph.name] = found.get(graph.name, 0.0) + known[key]
    return found


def _sizes(graph: Graph, call: Run, program: Program, batch: int) -> dict[str, int]:
    """Symbolic dimensions of a call: the rows of what it is given."""
    found = {BATCH: batch, STEPS: program.steps}
    for port in graph.inputs:
        if port.shape and isinstance(port.shape[0], str):
            found[port.shape[0]] = sum(program.buffers[ref.buffer].rows.at(batch) // ref.parts for ref in call.inputs[port.name])
    return found
