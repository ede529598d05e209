"""A recipe applied to the graphs of a pipeline, and what the bundle says of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import torch

from dexport.errors import UserError
from dexport.exporter.effective_recipe import EffectiveRecipe
from dexport.exporter.modelopt_checkpoint import PARTS, ModeloptCheckpoint
from dexport.exporter.split import Split
from dexport.passes.graph import Graph
from dexport.passes.quantization.attention import AttentionDecisions, decide_attention, quantize_attention
from dexport.passes.quantization.attention_sites import attention_sites
from dexport.passes.quantization.decide import Decisions, decide
from dexport.passes.quantization.quantize import quantize
from dexport.passes.quantization.recipe import AttentionSpec, Recipe, Section, Treatment
from dexport.passes.quantization.scratch import Scratch
from dexport.passes.quantization.sites import Site, ends, sites
from dexport.passes.quantization.statistics import Statistics
from dexport.passes.quantization.step_table import with_step_values
from dexport.passes.quantization.values import SiteValues
from dexport.runtime.manifest import JsonObject

Refine = Callable[[Graph, Decisions], Decisions]
"""Learns rounding: a graph and what was decided for it -> better values (exporter/reconstruction.py)."""

_KEPT_BITS = 16.0
KEPT = "16 bits"
"""What a layer that is not quantized has for weights."""
NO_WEIGHTS = "attention without"
"""What an attention has for weights: "attention without weights"."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What became of one site, or of one attention.

    Attributes:
        weights, activations: in words; "16 bits" and "" where it is kept.
        bits: per weight, scales and branch counted.
        note: why it is skipped, or what was done otherwise than asked.
    """

    component: str
    site: str
    parameters: int
    weights: str
    bits: float
    activations: str
    mode: str
    note: str


@dataclass(frozen=True)
class QuantizedSplit:
    """The quantized graphs, and every layer of the components that the recipe treats."""

    split: Split
    layers: tuple[Layer, ...]

    def average_bits(self, component: str) -> float | None:
        """Bits per weight over the linears and convolutions of a component, scales counted; None if it is not treated."""
        found = [layer for layer in self.layers if layer.component == component]
        total = sum(layer.parameters for layer in found)
        return sum(layer.bits * layer.parameters for layer in found) / total if total else None

    def treated_bits(self, component: str) -> float | None:
        """The same over the layers that are quantized, which is what a budget of bits is about; None if there are none."""
        found = [layer for layer in self.layers if layer.component == component and layer.weights != KEPT]
        total = sum(layer.parameters for layer in found)
        return sum(layer.bits * layer.parameters for layer in found) / total if total else None

    def weight_bytes(self, component: str) -> int:
        """Bytes of the weights of a component's linears and convolutions, scales and branches counted; what is kept has 16 bits."""
        return round(sum(layer.bits * layer.parameters for layer in self.layers if layer.component == component) / 8)


def treatments_of(graph: Graph, section: Section, skip: Sequence[str], where: str) -> dict[str, Treatment | None]:
    """Site -> treatment in a section, with the layers that the user skips kept.

    Raises:
        UserError: a pattern of the section matches nothing.
    """
    found = section.treatments([site.name for site in sites(graph)], ends(graph), where)
    return {name: None if any(matches(pattern, name) for pattern in skip) else treatment for name, treatment in found.items()}


def matches(pattern: str, name: str) -> bool:
    """Whether a name or a `re:` pattern means a site."""
    return bool(re.search(pattern[3:], name)) if pattern.startswith("re:") else pattern == name


def check_skips(skip: Sequence[str], split: Split) -> None:
    """Refuses a pattern that matches no layer.

    Raises:
        UserError: which one; names some layers.
    """
    names = [site.name for graph in split.graphs() for site in sites(graph)]
    names += [site.name for graph in split.graphs() for site in attention_sites(graph)]
    for pattern in skip:
        if not any(matches(pattern, name) for name in names):
            fix = f"layers are named like {', '.join(names[:: max(1, len(names) // 3)][:3])}"
            raise UserError(f"--skip {pattern}", expected="a layer that it matches", got="none", fix=fix)


def quantized_split(
    split: Split,
    recipe: Recipe,
    statistics: Statistics | None,
    scratch: Scratch,
    *,
    skip: Sequence[str] = (),
    overrides: Mapping[str, Mapping[str, Treatment | None]] | None = None,
    refine: Refine | None = None,
    checkpoint: ModeloptCheckpoint | None = None,
) -> QuantizedSplit:
    """Every component of a split treated by the section of its part.

    Args:
        statistics: None for recipes that need none.
        skip: names or patterns of layers to keep.
        overrides: component -> site -> treatment, over those of the sections: what an allocator chose.
        refine: learns rounding where a section asks for it.
        checkpoint: gives the values of the denoiser; `overrides` say which treatments.

    Raises:
        UserError: a pattern matches nothing, or statistics are needed.
    """
    if recipe.calibrated and statistics is None:
        raise UserError(f"recipe {recipe.name}", expected="statistics", got="none", fix="calibrate first: dexport calibrate MODEL -o FILE")
    check_skips(skip, split)
    changed: dict[str, Graph] = {}
    layers: list[Layer] = []
    for graph in split.graphs():
        part = split.section(graph)
        section = recipe.section(part) if part else None
        if section is None:
            continue
        treatments = treatments_of(graph, section, skip, f"recipe {recipe.name}: {part}")
        chosen = (overrides or {}).get(graph.name, {})
        treatments |= {name: t for name, t in chosen.items() if not any(matches(pattern, name) for pattern in skip)}
        if part != "denoiser":
            treatments = {name: _without_steps(t) for name, t in treatments.items()}
        seen = {} if statistics is None else statistics.components.get(graph.name, {})
        if checkpoint is not None and part in PARTS:
            decisions = checkpoint.decide(graph, treatments, scratch)
        else:
            decisions = decide(graph, treatments, seen, scratch)
        if refine is not None and section.reconstruction is not None:
            decisions = refine(graph, decisions)
        if section.attention is not None:
            kept = frozenset(a.name for a in attention_sites(graph) if any(matches(pattern, a.name) for pattern in skip))
            attention = decide_attention(graph, section.attention, seen, kept)
            layers += _attention_report(graph, section.attention, attention)
            graph = quantize_attention(graph, attention.values)
        changed |= written(split, graph, decisions, statistics)
        layers += layer_report(graph, treatments, decisions)
    return QuantizedSplit(split.with_graphs(changed), tuple(layers))


def _without_steps(treatment: Treatment | None) -> Treatment | None:
    """What runs once per prompt has one step: its table is a constant."""
    if treatment is None or treatment.activations is None or treatment.activations.mode != "table":
        return treatment
    return replace(treatment, activations=replace(treatment.activations, mode="static"))


def written(split: Split, graph: Graph, decisions: Decisions, statistics: Statistics | None) -> dict[str, Graph]:
    """Name -> graph: the quantized graph of a component, and the step table if scales go by step."""
    quantized = quantize(graph, decisions.values)
    if quantized.rows is None:
        return {graph.name: quantized.graph}
    assert statistics is not None
    timesteps = torch.tensor(statistics.schedule.timesteps)
    table = with_step_values(split.denoiser.table, split.table_name, timesteps, quantized.rows)
    return {graph.name: quantized.graph, split.table_name: table}


def layer_report(graph: Graph, treatments: Mapping[str, Treatment | None], decisions: Decisions) -> list[Layer]:
    """One line per site of a graph."""
    return [_layer(graph.name, site, treatments[site.name], decisions) for site in sites(graph)]


def _layer(component: str, site: Site, treatment: Treatment | None, decisions: Decisions) -> Layer:
    values = decisions.values.get(site.name)
    note = decisions.skipped.get(site.name) or decisions.notes.get(site.name, "")
    if values is None:
        words, bits = KEPT, _KEPT_BITS
        return Layer(
            component=component, site=site.name, parameters=site.parameters, weights=words, bits=bits, activations="", mode="", note=note
        )
    activations = treatment.activations if treatment is not None else None
    return Layer(
        component=component,
        site=site.name,
        parameters=site.parameters,
        weights=values.parts[0].label,
        bits=site_bits(site, values),
        activations="" if activations is None else activations.format,
        mode="" if activations is None else activations.mode,
        note=note,
    )


def _attention_report(graph: Graph, spec: AttentionSpec, decisions: AttentionDecisions) -> list[Layer]:
    """One line per attention, which has no weights."""
    rounded = spec.format if spec.format == spec.probabilities else f"{spec.format} and {spec.probabilities}"
    return [
        Layer(
            component=graph.name,
            site=site.name,
            parameters=0,
            weights=NO_WEIGHTS if done else KEPT,
            bits=0.0 if done else _KEPT_BITS,
            activations=rounded if done else "",
            mode="static" if done else "",
            note=decisions.skipped.get(site.name, ""),
        )
        for site in attention_sites(graph)
        for done in [site.name in decisions.values]
    ]


def site_bits(site: Site, values: SiteValues) -> float:
    """Bits per weight of a quantized site: parts by their share of the inputs, and the branch in 16 bits."""
    inputs = site.shape[1]
    codes = sum(part.bits * (inputs if part.channels is None else len(part.channels)) / inputs for part in values.parts)
    if values.branch is None:
        return codes
    factors = sum(weight.shape[0] * weight.shape[1] for weight in values.branch)
    return codes + _KEPT_BITS * factors / site.parameters


def recipe_document(effective: EffectiveRecipe, quantized: QuantizedSplit) -> JsonObject:
    """What the manifest says of the quantization."""
    recipe = effective.recipe
    components = {layer.component for layer in quantized.layers}
    return {
        "name": recipe.name,
        "summary": recipe.summary,
        "paper": recipe.paper,
        "sections": effective.sections(),
        "average_bits": {name: quantized.average_bits(name) for name in sorted(components)},
        "layers": [asdict(layer) for layer in quantized.layers],
        "degraded": [f"{d.section}: {d.asked} to {d.built} ({d.reason})" for d in effective.degraded],
    }
