"""Mixed precision: every layer of a section gets one of the recipe's choices, so that the pictures suffer least within a budget of bits.

The budget is over the layers that the recipe quantizes, scales and low-rank branches counted: layers that it keeps, and those that the user
skips, are no part of it. `--budget-bytes` and `--average-bits` override the recipe's own. `--budget-ms` is over all of a step: what the
target takes for attention and for layers that are kept counts too (exporter/latency.py). Layers that the recipe names have what it says
there; all others may get any choice that suits them.

A choice that does nothing, `keep: {}`, leaves a layer as it is, at 16 bits per weight and no harm.

Layers that read one value are treated alike where the choices differ in what they do to activations, because the value is then prepared
once; choices of weights alone are free.

Groups of layers are ranked by what suits their name (metric-decoupled allocation, see passes/quantization/allocate.py):

    prompt               prompt-following: the loss of score, or the error of what the prompt adds
    content, picture     the pictures
    quality              the denoiser's output

as far as the metric measured it, else by the metric itself, which also says how much the groups matter beside each other. With the metric
"end-to-end" the budget is divided between groups by making pictures with every division.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dexport.errors import UserError
from dexport.exporter.latency import StepLatency, step_latency
from dexport.exporter.options import BuildOptions
from dexport.exporter.quantization import site_bits, treatments_of
from dexport.exporter.scorer import load_scorer
from dexport.exporter.sensitivity import Choices, PictureTrial, Probe, Report, Units, in_memory, measure_sensitivity
from dexport.exporter.sensitivity_table import SensitivityTable
from dexport.exporter.torch_pipeline import TorchPipeline
from dexport.passes.graph import Graph
from dexport.passes.quantization.allocate import Allocation, Budget, Option, Options, allocate_groups
from dexport.passes.quantization.decide import Decisions, decide
from dexport.passes.quantization.recipe import MixedPrecisionSpec, Recipe, Section, Treatment
from dexport.passes.quantization.scratch import Scratch
from dexport.passes.quantization.sites import sites
from dexport.passes.quantization.statistics import Statistics

GROUP_MEASURES = {"prompt": ("score", "prompt"), "content": ("picture",), "picture": ("picture",), "quality": ("output",)}
"""Name of a group -> the measures that rank it, the first that there is."""
KEPT_BITS = 16


@dataclass(frozen=True)
class Allocated:
    """What was chosen.

    Attributes:
        overrides: component -> site -> treatment (None to keep it), for `quantized_split`.
        choices: site -> name of the choice.
        tables: component -> what was measured.
        average_bits: per weight of the layers that the recipe quantizes or lets the allocator keep.
    """

    overrides: Mapping[str, Mapping[str, Treatment | None]]
    choices: Mapping[str, str]
    tables: Mapping[str, SensitivityTable]
    average_bits: float


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the user wants of an allocation.

    Attributes:
        budget_bytes, average_bits: None takes the recipe's average bits.
        budget_ms: most milliseconds of a step, by `latency`; instead of a budget of bits.
        skip: names or `re:` patterns of layers that are kept.
    """

    probe: Probe
    budget_bytes: int | None = None
    average_bits: float | None = None
    budget_ms: float | None = None
    latency: StepLatency | None = None
    skip: tuple[str, ...] = ()


def allocate_treatments(
    pipeline: TorchPipeline,
    recipe: Recipe,
    statistics: Statistics,
    options: BuildOptions,
    scratch: Scratch,
    report: Report = lambda stage, done: None,
) -> Mapping[str, Mapping[str, Treatment | None]]:
    """Component -> site -> treatment (None to keep it) for the denoiser of a recipe with mixed precision; nothing for one without.

    Raises:
        UserError: the budget cannot be met (says the smallest possible), or there is none.
    """
    section = recipe.section("denoiser")
    if section is None or section.mixed_precision is None:
        return {}
    spec = section.mixed_precision
    scorer = None if options.scorer is None or spec.metric != "end-to-end" else load_scorer(options.scorer)
    probe = Probe(metric=spec.metric, ranges=1 if spec.metric == "end-to-end" else 4, scorer=scorer, scorer_name=options.scorer or "")
    latency = None if options.budget_ms is None else step_latency(pipeline.split.denoiser.loop, pipeline.plan)
    wanted = Wanted(
        probe=probe,
        budget_bytes=options.budget_bytes,
        average_bits=options.average_bits,
        budget_ms=options.budget_ms,
        latency=latency,
        skip=options.skip,
    )
    return allocated(pipeline, recipe, section, statistics, wanted, scratch, report).overrides


def allocated(
    pipeline: TorchPipeline, recipe: Recipe, section: Section, statistics: Statistics, wanted: Wanted, scratch: Scratch, report: Report
) -> Allocated:
    """The allocation for the denoiser's loop, with everything that led to it.

    Raises:
        UserError: the budget cannot be met (says the smallest possible), or there is none.
    """
    return _Allocation(pipeline, recipe, section, statistics, wanted, scratch).result(report)


def keeps(treatment: Treatment) -> bool:
    """Whether a choice leaves a layer as it is."""
    return treatment.weights is None


def choice_units(graph: Graph, names: Mapping[str, Treatment], free: frozenset[str]) -> dict[str, tuple[str, ...]]:
    """The sites that get a choice, in units that get the same: those that read one value, where choices treat activations differently.

    Args:
        names: choice -> treatment.
        free: sites that get a choice.
    """
    alike = len({dataclasses.replace(t, weights=None, low_rank=None) for t in names.values() if not keeps(t)}) <= 1
    units: dict[str, list[str]] = {}
    for site in sites(graph):
        if site.name in free:
            units.setdefault(site.name if alike else site.source, []).append(site.name)
    return {members[0]: tuple(members) for members in units.values()}


class _Allocation:
    """One allocation for the loop of a pipeline."""

    def __init__(
        self, pipeline: TorchPipeline, recipe: Recipe, section: Section, statistics: Statistics, wanted: Wanted, scratch: Scratch
    ) -> None:
        assert section.mixed_precision is not None
        self._pipeline, self._statistics, self._wanted = pipeline, statistics, wanted
        self._spec: MixedPrecisionSpec = section.mixed_precision
        self._where = f"recipe {recipe.name}: mixed_precision"
        self._graph = graph = pipeline.split.denoiser.loop
        seen = statistics.components.get(graph.name, {})
        treatments = treatments_of(graph, section, wanted.skip, f"recipe {recipe.name}: denoiser")
        named = {name for name in treatments if any(_named(key, name) for key in section.layers)}
        own = {name: t for name, t in treatments.items() if t is not None and name in named}
        free = frozenset(name for name, t in treatments.items() if t is not None and name not in named)
        self._sites = {site.name: site for site in sites(graph)}
        self._fixed = decide(graph, own, seen, scratch)
        self._fixed_treatments = own
        self._choices: Choices = {
            name: decide(graph, dict.fromkeys(free, treatment), seen, scratch)
            for name, treatment in self._spec.choices.items()
            if not keeps(treatment)
        }
        self._keeping = [name for name, treatment in self._spec.choices.items() if keeps(treatment)]
        self._units: Units = choice_units(graph, self._spec.choices, free)

    def result(self, report: Report) -> Allocated:
        about = {"choices": {name: repr(t) for name, t in self._spec.choices.items()}}
        table = measure_sensitivity(
            self._pipeline, self._graph.name, self._choices, self._units, self._statistics, self._wanted.probe, about=about, report=report
        )
        groups = self._groups(table)
        budget = self._budget({unit: found for options in groups.values() for unit, found in options.items()})
        judge = self._judge(report) if self._wanted.probe.metric == "end-to-end" and len(groups) > 1 else None
        found = allocate_groups(groups, budget, _importance(groups, table), judge, where=self._where)
        chosen = {site: choice for unit, choice in found.choices.items() for site in self._units[unit]}
        overrides = {site: None if choice in self._keeping else self._spec.choices[choice] for site, choice in chosen.items()}
        bits = sum(self._bits_of(site, choice) for site, choice in chosen.items()) + self._fixed_bits()
        parameters = self._parameters(chosen)
        return Allocated({self._graph.name: overrides}, chosen, {self._graph.name: table}, bits / max(parameters, 1))

    def _groups(self, table: SensitivityTable) -> dict[str, Options]:
        """Group -> options of its units; each unit is in the first group whose pattern finds its first site. Units that no choice suits are
        left out: they stay as they are."""
        patterns = dict(self._spec.groups) or {"all": "re:."}
        found: dict[str, dict[str, dict[str, Option]]] = {name: {} for name in patterns}
        unused = set(patterns)
        for unit, members in self._units.items():
            name = next((name for name, pattern in patterns.items() if _named(pattern, members[0])), None)
            if name is None:
                fix = 'end the groups with one for the rest, such as quality: "re:."'
                raise UserError(f"{self._where}: groups", expected="a group for every layer", got=f"none for {members[0]}", fix=fix)
            unused.discard(name)
            options = {choice: self._option(table, name, unit, choice) for choice in self._choices if table.has(unit, choice)}
            if options:
                found[name][unit] = options | {choice: Option(0.0, self._size(unit, choice)) for choice in self._keeping}
        if unused:
            name = sorted(unused)[0]
            expected, fix = "a layer that it matches", f"layers are named like {', '.join(list(self._units)[:3])}"
            raise UserError(f"{self._where}: groups: {name}: {patterns[name]}", expected=expected, got="none", fix=fix)
        return {name: units for name, units in found.items() if units}

    def _option(self, table: SensitivityTable, group: str, unit: str, choice: str) -> Option:
        measured = table.harms[unit][choice]
        measure = next((m for m in GROUP_MEASURES.get(group, ()) if m in measured), table.measure)
        return Option(table.harm(unit, choice, measure), self._size(unit, choice))

    def _size(self, unit: str, choice: str) -> float:
        """Of all sites of a unit, in the unit of the budget."""
        members = self._units[unit]
        if self._wanted.budget_ms is None:
            return sum(self._bits_of(site, choice) for site in members)
        return sum(self._milliseconds(site, self._spec.choices[choice]) for site in members)

    def _milliseconds(self, site: str, treatment: Treatment) -> float:
        assert self._wanted.latency is not None, "a budget of time needs estimates"
        return self._wanted.latency.layer(self._sites[site], treatment)

    def _bits_of(self, site: str, choice: str) -> int:
        if choice in self._keeping:
            return KEPT_BITS * self._sites[site].parameters
        return self._bits(site, self._choices[choice])

    def _bits(self, site: str, decided: Decisions) -> int:
        """Whole bits, so that sums are exact and a budget that is just met is met."""
        return round(site_bits(self._sites[site], decided.values[site]) * self._sites[site].parameters)

    def _fixed_bits(self) -> int:
        return sum(self._bits(site, self._fixed) for site in self._fixed.values)

    def _parameters(self, chosen: Mapping[str, object]) -> int:
        return sum(self._sites[site].parameters for site in (*chosen, *self._fixed.values))

    def _budget(self, options: Options) -> Budget:
        wanted = self._wanted
        if wanted.budget_ms is not None:
            assert wanted.latency is not None
            treated = {*(site for unit in options for site in self._units[unit]), *self._fixed.values}
            fixed = wanted.latency.others(self._sites[site] for site in treated)
            fixed += sum(self._milliseconds(site, self._fixed_treatments[site]) for site in self._fixed.values)
            return Budget(wanted.budget_ms, "ms", fixed=fixed)
        parameters = self._parameters({site: None for unit in options for site in self._units[unit]})
        average = wanted.average_bits if wanted.average_bits is not None else self._spec.average_bits
        if wanted.budget_bytes is not None:
            limit = 8.0 * wanted.budget_bytes
        elif average is not None:
            limit = average * parameters
        else:
            fix = "add average_bits to the recipe, or give --average-bits, --budget-bytes or --budget-ms"
            raise UserError(self._where, expected="a budget", got="none", fix=fix)
        return Budget(limit, "bits", parameters, self._fixed_bits())

    def _judge(self, report: Report) -> Callable[[Allocation], float]:
        """How far pictures of the calibration go astray under an allocation."""
        trial = PictureTrial(in_memory(self._pipeline), self._graph.name, self._statistics, self._wanted.probe.pictures)

        def judge(allocation: Allocation) -> float:
            report("divide the budget between groups of layers", None)
            chosen = {site: choice for unit, choice in allocation.choices.items() for site in self._units[unit]}
            values = {site: self._choices[choice].values[site] for site, choice in chosen.items() if choice not in self._keeping}
            return trial.error(trial.pictures({**values, **self._fixed.values}))

        return judge


def _importance(groups: Mapping[str, Options], table: SensitivityTable) -> dict[str, float]:
    """Group -> the harm of its worst choices by the measure of the metric, which is the same for all groups."""

    def worst(unit: str, options: Mapping[str, Option]) -> float:
        return max(table.harm(unit, choice, table.measure) for choice in options if table.has(unit, choice))

    return {name: sum(worst(unit, options) for unit, options in units.items()) for name, units in groups.items()}


def _named(key: str, name: str) -> bool:
    return bool(re.search(key[3:], name)) if key.startswith("re:") else key == name
