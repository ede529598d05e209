"""Estimated latency of one step of the denoiser, layer by layer; exporter/estimate.py has whole runs.

A treatment that is only planned costs what its operation would, with its low-rank branch; balancing, rotation, splits and bypassed tokens
are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from torch import fx

from dexport.exporter.operations import Operations, planned_form
from dexport.exporter.plan import Plan
from dexport.passes.graph import BATCH, STEPS, Graph, call_nodes
from dexport.passes.quantization.recipe import Treatment
from dexport.passes.quantization.sites import Site
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
        node = self._nodes[site.node]
        planned = planned_form(treatment, self._operations.wide(node))
        return self.calls * total(self._operations.layer(node, planned.form, planned.rank), self.target)

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
