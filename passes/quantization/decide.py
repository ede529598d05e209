"""Decide: a recipe's treatments and the statistics of a graph become values for every site.

In the order that the methods need, each working on what the one before left: token bypass, balancing, rotation, low-rank branch, split
into groups, ranges, rounding. A site that cannot be treated as asked is skipped with the reason; a block that does not divide the inputs
becomes the largest one that does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from dexport.passes.graph import Graph, Weight, value
from dexport.passes.quantization.activation_ranges import activation_range
from dexport.passes.quantization.after import after
from dexport.passes.quantization.balancing import multipliers
from dexport.passes.quantization.branch import Branched, branched
from dexport.passes.quantization.gptq import gptq
from dexport.passes.quantization.grouping import channel_groups, token_groups
from dexport.passes.quantization.groups import outlier_tokens
from dexport.passes.quantization.parts import RealWeight, Rounding, SharedScales, quantized_part, shared_scales
from dexport.passes.quantization.recipe import MICRO_FORMATS, ActivationSpec, Treatment
from dexport.passes.quantization.rotation import hadamard_factors, random_signs, rotate, rotated_weight
from dexport.passes.quantization.scratch import Scratch
from dexport.passes.quantization.simulate import simulated_activations
from dexport.passes.quantization.sites import Site, sites
from dexport.passes.quantization.statistics import SiteStatistics
from dexport.passes.quantization.values import ActivationValues, QuantizedPart, SiteValues
from dexport.passes.quantization.weights import fits

_SMALLEST_BLOCK = 16


@dataclass(frozen=True)
class Decisions:
    """Values by site name; why sites are skipped; what was done otherwise than asked."""

    values: Mapping[str, SiteValues]
    skipped: Mapping[str, str]
    notes: Mapping[str, str]


def decide(graph: Graph, treatments: Mapping[str, Treatment | None], seen: Mapping[str, SiteStatistics], scratch: Scratch) -> Decisions:
    """The values of every treated site of a graph.

    Args:
        treatments: site name -> treatment, None to keep.
        seen: site name -> statistics; those of one source may be shared.
        scratch: for what takes long to compute.
    """
    values: dict[str, SiteValues] = {}
    skipped: dict[str, str] = {}
    notes: dict[str, str] = {}
    wanted: dict[Site, Treatment] = {}
    for site in sites(graph):
        treatment = treatments.get(site.name)
        if treatment is None or treatment.weights is None:
            skipped[site.name] = "the recipe keeps it"
            continue
        fitted, note = fitted_treatment(site, treatment)
        reason = _refusal(site, fitted, seen.get(site.name))
        if reason is not None:
            skipped[site.name] = reason
            continue
        wanted[site] = fitted
        if note:
            notes[site.name] = note
    balance = multipliers(graph, wanted, seen)
    shared: dict[Any, ActivationValues] = {}
    for site, treatment in wanted.items():
        prepared = _Site(graph, site, treatment, seen.get(site.name), balance.get(site.name), scratch, shared)
        if (reason := prepared.refusal()) is None:
            values[site.name] = prepared.values()
        else:
            skipped[site.name] = reason
            notes.pop(site.name, None)
    return Decisions(values, skipped, notes)


def fitted_treatment(site: Site, treatment: Treatment) -> tuple[Treatment, str]:
    """The treatment as this site can have it, and what was changed.

    Convolutions have no blocks, tokens, rotation, branch or centre; a block that does not divide the inputs is made smaller.
    """
    notes: list[str] = []
    weights, activations = treatment.weights, treatment.activations
    assert weights is not None
    block = weights.block
    if site.kind == "conv":
        if weights.rounding == "gptq":
            weights = replace(weights, rounding="nearest")
            notes.append("rounded to the nearest: GPTQ is for linears")
        if block and weights.format not in MICRO_FORMATS:
            weights = replace(weights, granularity="channel")
            notes.append("a scale per channel: kernels have no blocks")
        if activations is not None:
            mode = "dynamic" if activations.mode == "dynamic-centred" else activations.mode
            activations = replace(activations, mode=mode, granularity="tensor", centred=False)
        return replace(
            treatment, weights=weights, activations=activations, balance=None, rotate=None, low_rank=None, bypass_tokens=0
        ), "; ".join(notes)
    if treatment.rotate and treatment.split_concat:
        treatment = replace(treatment, split_concat=False)
        notes.append("the pieces of its input are quantized together: rotation mixes them")
    if block and site.inputs % block and weights.format not in MICRO_FORMATS:
        smaller = next((b for b in range(block, _SMALLEST_BLOCK - 1, -1) if site.inputs % b == 0), None)
        granularity = f"block-{smaller}" if smaller else "channel"
        notes.append(f"{granularity} instead of block-{block}: {site.inputs} inputs")
        weights = replace(weights, granularity=granularity)
        if activations is not None and activations.block == block:
            activations = replace(activations, granularity=granularity if smaller else "token")
    return replace(treatment, weights=weights, activations=activations), "; ".join(notes)


def _refusal(site: Site, treatment: Treatment, seen: SiteStatistics | None) -> str | None:
    weights, activations = treatment.weights, treatment.activations
    assert weights is not None
    if treatment.calibrated and seen is None:
        return "calibration did not reach it"
    if (reason := fits(site.shape, weights)) is not None:
        return reason
    if treatment.low_rank is not None and treatment.low_rank.rank > min(site.shape):
        return f"a branch of rank {treatment.low_rank.rank} is larger than its weight {'x'.join(map(str, site.shape))}"
    if treatment.rotate:
        try:
            hadamard_factors(site.inputs)
        except ValueError as error:
            return str(error)
    return None if activations is None else _activation_refusal(site, treatment, activations, seen)


def _activation_refusal(site: Site, treatment: Treatment, activations: ActivationSpec, seen: SiteStatistics | None) -> str | None:
    if site.kind == "conv" and activations.format in MICRO_FORMATS:
        return f"{activations.format} is for linears: kernels have no blocks"
    if activations.block and site.inputs % activations.block:
        return f"{site.inputs} inputs are no multiple of the activation block of {activations.block}"
    if activations.granularity.startswith("token") and not activations.mode.startswith("dynamic"):
        if seen is None or seen.token_minimum is None:
            return "the number of its tokens is not fixed: constant scales per token are unknown"
        if treatment.balance is not None or treatment.rotate:
            return "constant scales per token are not known after balancing or rotation"
    return None


class _Site:
    """One site on its way: what it reads, and what is left of its weight."""

    def __init__(
        self,
        graph: Graph,
        site: Site,
        treatment: Treatment,
        seen: SiteStatistics | None,
        multiplier: torch.Tensor | None,
        scratch: Scratch,
        shared: dict[Any, ActivationValues],
    ) -> None:
        self._graph, self._site, self._treatment, self._scratch, self._shared = graph, site, treatment, scratch, shared
        self._multiplier = multiplier
        self._signs = random_signs(site.inputs, site.inputs) if treatment.rotate else None
        self._bypass = _bypass(treatment, seen)
        self._seen = seen
        self._node: fx.Node = next(n for n in graph.module.graph.nodes if n.name == site.node)
        self._source: fx.Node = self._node.all_input_nodes[0]
        self._dtype: torch.dtype = value(self._node).dtype

    def refusal(self) -> str | None:
        """Why this site cannot be treated, as far as its input decides that."""
        shape, spec, activations = value(self._source).shape, self._treatment.weights, self._treatment.activations
        assert spec is not None
        if self._bypass and (len(shape) != 3 or self._bypass >= shape[1]):
            return f"its input has no {self._bypass} leading tokens beside others"
        for channels in self._splits():
            count = self._site.inputs if channels is None else len(channels)
            for block in (spec.block, 0 if activations is None else activations.block):
                if block and count % block:
                    return f"{count} inputs of a part are no multiple of the block of {block}"
        return None

    def values(self) -> SiteValues:
        weight = _transformed(self._graph.weights[self._site.weight], self._multiplier, self._signs)
        branch = self._branch(weight)
        if branch is not None:
            residual = branch.residual
            weight = replace(weight, read=lambda: residual, slow=True, origin=f"{weight.origin} less its branch")
        splits, spec = self._splits(), self._treatment.weights
        assert spec is not None
        # Groups of channels are a matter of activations: outputs keep one scale. Pieces of a concatenation are weights of their own.
        grouped = len(splits) > 1 and not self._pieces()
        shared = shared_scales(weight, spec, self._dtype) if grouped else None
        parts = tuple(self._part(weight, channels, shared) for channels in splits)
        factors = None if branch is None else (branch.down, branch.up)
        return SiteValues(parts, self._bypass, self._multiplier, self._signs, factors)

    def _seen_after(self, channels: tuple[int, ...] | None) -> SiteStatistics | None:
        if self._seen is None:
            return None
        signs = self._signs
        return after(self._seen, self._multiplier, None if signs is None else lambda rows: rotate(rows, signs), channels, self._bypass)

    def _branch(self, weight: RealWeight) -> Branched | None:
        low_rank, spec = self._treatment.low_rank, self._treatment.weights
        if low_rank is None:
            return None
        assert spec is not None
        return branched(weight, low_rank, spec, self._treatment.activations, self._seen_after(None), self._scratch, self._dtype)

    def _splits(self) -> list[tuple[int, ...] | None]:
        """Channels of every part: pieces of a concatenated input, groups of similar channels, or all."""
        if pieces := self._pieces():
            return list(pieces)
        activations = self._treatment.activations
        if activations is None or "groups" not in activations.granularity or self._seen is None:
            return [None]
        seen = self._seen_after(None)
        assert seen is not None
        return list(channel_groups(seen, activations)) or [None]

    def _pieces(self) -> list[tuple[int, ...]]:
        """Channels of the pieces of a concatenated input that are to be quantized apart; none unless there are several."""
        pieces = _pieces(self._node, self._site) if self._treatment.split_concat else []
        return pieces if len(pieces) > 1 else []

    def _part(self, weight: RealWeight, channels: tuple[int, ...] | None, shared: SharedScales | None) -> QuantizedPart:
        spec, activations = self._treatment.weights, self._treatment.activations
        assert spec is not None
        values = None if activations is None else self._rounded(activations, channels)
        rounding = self._gptq(activations, channels) if spec.rounding == "gptq" else None  # learned rounding starts from the nearest
        return quantized_part(weight, spec, values, self._scratch, self._dtype, rounding, channels, shared)

    def _rounded(self, spec: ActivationSpec, channels: tuple[int, ...] | None) -> ActivationValues:
        """How the activation is rounded; sites that do the same to one value share it, as compilers merge them by that (q, k and v)."""
        key = (self._source, spec, id(self._multiplier), self._treatment.rotate, self._bypass, channels)
        if key not in self._shared:
            self._shared[key] = activation_values(spec, self._seen_after(channels))
        return self._shared[key]

    def _gptq(self, activations: ActivationSpec | None, channels: tuple[int, ...] | None) -> Rounding:
        """GPTQ on the rows that were seen, rounded as the layer will see them."""
        seen = self._seen_after(channels)
        assert seen is not None
        rows = simulated_activations(seen.rows, activations)
        return lambda weight, grid: gptq(weight, rows, grid)


def _transformed(weight: Weight, multiplier: torch.Tensor | None, signs: torch.Tensor | None) -> RealWeight:
    """W / m, rotated."""
    name = weight.origin
    if multiplier is not None:
        name += f" / {float(multiplier.double().sum()):.9g}"
    if signs is not None:
        name += " rotated"

    def read() -> torch.Tensor:
        real = weight.load().float()
        if multiplier is not None:
            real = real / multiplier.cpu()
        return real if signs is None else rotated_weight(real, signs.cpu())

    return RealWeight(read, weight.shape, name)


def activation_values(spec: ActivationSpec, seen: SiteStatistics | None) -> ActivationValues:
    """How a site's activations are rounded, given what was seen of them."""
    format, block = MICRO_FORMATS.get(spec.format, (spec.format, spec.block))
    micro = spec.format if spec.format in MICRO_FORMATS else ""
    if not spec.calibrated:
        return ActivationValues(format, spec.mode, block, micro)
    assert seen is not None
    if (grouped := token_groups(seen, spec)) is not None:
        return grouped
    found = activation_range(seen, replace(spec, granularity="token" if spec.granularity == "token" else "tensor"))
    return ActivationValues(found.format, spec.mode, block, micro, found.scale, found.centre)


def _bypass(treatment: Treatment, seen: SiteStatistics | None) -> int:
    if treatment.bypass_tokens != "auto":
        return int(treatment.bypass_tokens)
    if seen is None or seen.token_minimum is None or seen.token_maximum is None:
        return 0
    return outlier_tokens(seen.token_minimum, seen.token_maximum)


def _pieces(node: fx.Node, site: Site) -> list[tuple[int, ...]]:
    """Channels of the values that a concatenation along the channels joins, in order; none for grouped convolutions."""
    source = node.all_input_nodes[0]
    if value(source).shape[1 if site.kind == "conv" else -1] != site.inputs:
        return []
    axis = 1 if site.kind == "conv" else value(source).dim() - 1
    if source.target is not torch.ops.aten.cat.default or not isinstance(source.args[0], list | tuple):
        return []
    given = source.args[1] if len(source.args) > 1 else 0
    assert isinstance(given, int)
    if given % value(source).dim() != axis:
        return []
    bounds, start = [], 0
    for piece in source.args[0]:
        assert isinstance(piece, fx.Node)
        size = int(value(piece).shape[axis])
        bounds.append(tuple(range(start, start + size)))
        start += size
    return bounds
