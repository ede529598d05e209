"""Layers that a recipe wants computed by the plugin `lowrank_linear` and whose sizes its kernel does not have.

They are known once the graphs are captured, so that nobody calibrates for an hour to hear of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from dexport.errors import UserError
from dexport.exporter.effective_recipe import Degraded
from dexport.exporter.plan import Plan
from dexport.exporter.quantized_forms import needs_lowrank_linear
from dexport.exporter.spellings.lowrank import OUTPUT_MULTIPLE
from dexport.exporter.split import Split
from dexport.exporter.workload import planned_treatments
from dexport.passes.graph import value
from dexport.passes.quantization.recipe import Treatment
from dexport.passes.quantization.sites import Site, sites
from dexport.plugins.lowrank_linear.shapes import GROUP

_MOST_NAMED = 3


def keeping_misfits(decided: Plan, splits: Sequence[Split]) -> Plan:
    """The plan with such layers among those that are not quantized.

    Raises:
        UserError: there are some, and the user has not allowed that things are built otherwise than asked.
    """
    effective = decided.recipe
    assert effective is not None
    found = dict(misfit for split in splits for misfit in _misfits(decided, split))
    if not found:
        return decided
    listed = [f"{name} ({reason})" for name, reason in found.items()]
    more = f" and {len(listed) - _MOST_NAMED} more" if len(listed) > _MOST_NAMED else ""
    got = ", ".join(listed[:_MOST_NAMED]) + more
    expected = f"layers in fp16 or bf16 with {GROUP}n inputs and {OUTPUT_MULTIPLE}n outputs, as the plugin lowrank_linear has them"
    if not decided.options.allow_degrade:
        fix = "add --allow-degrade to keep these in 16 bits, or --skip LAYER for each"
        raise UserError(f"{decided.target.id}: recipe {effective.recipe.name}", expected=expected, got=got, fix=fix)
    kept = Degraded("layers", got, "16 bits", f"expected {expected}")
    options = replace(decided.options, skip=(*decided.options.skip, *found))
    return replace(decided, options=options, recipe=replace(effective, degraded=(*effective.degraded, kept)))


def _misfits(decided: Plan, split: Split) -> Iterator[tuple[str, str]]:
    """Names of layers, and what is wrong with them."""
    effective = decided.recipe
    assert effective is not None
    planned = planned_treatments(split, effective, decided.options)
    for graph in split.graphs():
        treatments = planned.get(graph.name, {})
        section = effective.recipe.section(split.section(graph) or "")
        mixed = None if section is None else section.mixed_precision
        choices: list[Treatment] = [] if mixed is None else list(mixed.choices.values())
        dtypes = {node.name: value(node).dtype for node in graph.module.graph.nodes if hasattr(node.meta.get("val"), "dtype")}
        for site in sites(graph):
            treatment = treatments.get(site.name)
            wanted = [] if treatment is None else [treatment, *choices]
            reason = _reason(site, dtypes[site.node])
            if reason and site.kind == "linear" and any(needs_lowrank_linear(decided.target, one) for one in wanted):
                yield site.name, reason


def _reason(site: Site, dtype: torch.dtype) -> str:
    outputs = site.shape[0]
    wide = "fp32" if dtype not in (torch.float16, torch.bfloat16) else ""
    sizes = f"{site.inputs} inputs" if site.inputs % GROUP else f"{outputs} outputs" if outputs % OUTPUT_MULTIPLE else ""
    return wide or sizes
