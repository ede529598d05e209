"""What captured graphs ask of a device: the loads of a program's calls, and the bytes of weights by format, as they are or as planned."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch

from dexport.exporter.arena import arena_bytes
from dexport.exporter.effective_recipe import EffectiveRecipe
from dexport.exporter.modelopt_checkpoint import PARTS
from dexport.exporter.operations import Operations, Planned, planned_form
from dexport.exporter.options import BuildOptions
from dexport.exporter.quantization import treatments_of
from dexport.exporter.split import Split
from dexport.passes.graph import Graph, call_nodes, value
from dexport.passes.quantization.recipe import Section, Treatment
from dexport.passes.quantization.sites import sites
from dexport.runtime.program import Program
from dexport.runtime.workload import Load, Shapes, Sizes, calls, load

NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
_WIDE_BITS = 16

Treatments = Mapping[str, Mapping[str, Treatment | None]]
"""Component -> site -> treatment."""


@dataclass
class Workload:
    """The loads of a split's graphs; each is found once, however many programs make the call.

    Args:
        treatments: of layers that are yet to be quantized.
    """

    split: Split
    treatments: Treatments = field(default_factory=dict)
    _known: dict[tuple[str, Sizes], Load] = field(default_factory=dict)

    @property
    def shapes(self) -> Shapes:
        """Of every graph's inputs."""
        return {graph.name: {port.name: port.shape for port in graph.inputs} for graph in self.split.graphs()}

    def loads(self, program: Program, batch: int) -> Iterator[Load]:
        """What each call of a program asks for, for so many pictures."""
        graphs = {graph.name: graph for graph in self.split.graphs()}
        for key in calls(program.instructions(), program, self.shapes, batch):
            if key not in self._known:
                name, sizes = key
                graph = graphs[name]
                works = Operations(graph, dict(sizes), planned(graph, self.treatments.get(name, {}))).all()
                self._known[key] = load(name, self.split.size, sizes, arena_bytes(graph, dict(sizes)), works)
            yield self._known[key]

    def weights(self, storage: torch.dtype | None = None) -> dict[str, tuple[int, dict[str, int]]]:
        """Component -> parameters, and bytes by format.

        Args:
            storage: of fp32 weights, where they are stored narrower than they are computed.
        """
        return {g.name: (g.parameter_count(), weight_bytes(g, self.treatments.get(g.name, {}), storage)) for g in self.split.graphs()}


def planned(graph: Graph, treatments: Mapping[str, Treatment | None]) -> dict[torch.fx.Node, Planned]:
    """Node -> what its treatment makes of it."""
    if not treatments:
        return {}
    nodes = {node.name: node for node in call_nodes(graph)}
    found = ((nodes[site.node], treatments.get(site.name)) for site in sites(graph))
    return {node: planned_form(treatment, NAMES.get(value(node).dtype, "fp32")) for node, treatment in found}


def weight_bytes(graph: Graph, treatments: Mapping[str, Treatment | None], storage: torch.dtype | None = None) -> dict[str, int]:
    """Format -> bytes of the weights that a graph reads: treated ones at their bits, with scales and branches, others as they are."""
    bits: dict[str, tuple[str, float]] = {}
    for site in sites(graph):
        treatment = treatments.get(site.name)
        if treatment is not None and treatment.weights is not None:
            layer = planned_form(treatment, "fp16")
            assert layer.form is not None
            wide = _WIDE_BITS * (site.shape[0] + layer.rank * (site.shape[0] + site.inputs))  # a scale per row, and the branch
            bits[site.weight] = treatment.weights.format.split("|")[0], layer.form.weight_bits * site.parameters + wide
    found = Counter[str]()
    for name, weight in graph.used_weights().items():
        narrow = storage is not None and weight.dtype is torch.float32
        dtype = storage if narrow and storage is not None else weight.dtype
        plain = NAMES.get(dtype, str(dtype).removeprefix("torch.")), 8.0 * weight.nbytes / weight.dtype.itemsize * dtype.itemsize
        format, size = bits.get(name, plain)
        found[format] += math.ceil(size / 8)
    return dict(found)


def planned_treatments(split: Split, effective: EffectiveRecipe | None, options: BuildOptions) -> dict[str, dict[str, Treatment | None]]:
    """What a recipe will do to every layer, before any statistics: where it chooses by a budget, the choice next above the budget.

    Raises:
        UserError: a pattern matches nothing.
    """
    found: dict[str, dict[str, Treatment | None]] = {}
    for graph in split.graphs():
        part = split.section(graph)
        section = effective.recipe.section(part) if effective is not None and part else None
        if effective is None or section is None:
            continue
        if effective.checkpoint is not None and part in PARTS:
            found[graph.name] = effective.checkpoint.treatments(graph)
            continue
        section = _chosen(section, options.average_bits)
        found[graph.name] = treatments_of(graph, section, options.skip, f"recipe {effective.recipe.name}: {part}")
    return found


def _chosen(section: Section, average_bits: float | None) -> Section:
    """A section whose layers all get one choice of its mixed precision."""
    mixed = section.mixed_precision
    if mixed is None:
        return section
    budget = average_bits or mixed.average_bits or math.inf
    choices = sorted(mixed.choices.values(), key=_bits)
    return replace(section, default=next((choice for choice in choices if _bits(choice) >= budget), choices[-1]))


def _bits(treatment: Treatment) -> float:
    form = planned_form(treatment, "fp16").form
    return _WIDE_BITS if form is None else form.weight_bits
