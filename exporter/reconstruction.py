"""Learned rounding in a pipeline: the loop's units are fitted one after another on the samples that calibration kept.

What entered the loop is made again from the statistics: latents as they were, step values for the calibrated timesteps, and prompt values
by the pipeline's own encoders and preludes, for both halves of the guidance. Each unit sees what the units before it, already quantized,
feed it, and is fitted to what the unquantized model makes (`passes/quantization/unit_flow.py`).

Temporal features need no unit of their own (TFMQ-DM, arXiv 2311.16503, fits the layers that make them together): hoisting has moved these
layers out of the loop, and what they make is computed exactly, once per step, which is the journal version's cache (arXiv 2407.19547).
Where the prompt mixes into them (pooled text, class labels) they run once per prompt, in a component that a recipe quantizes only if its
section "prelude" says so.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch

from dexport.errors import UserError
from dexport.exporter.program import GuidanceUse
from dexport.exporter.quantization import Refine
from dexport.exporter.torch_pipeline import TorchPipeline
from dexport.passes.graph import BATCH, Graph, Kind, Port, run
from dexport.passes.quantization.decide import Decisions
from dexport.passes.quantization.recipe import Recipe, ReconstructionSpec, Section, Treatment
from dexport.passes.quantization.reconstruction import Fit, Outputs, Reconstructed, reconstruct
from dexport.passes.quantization.scratch import Scratch
from dexport.passes.quantization.sites import ends, sites
from dexport.passes.quantization.statistics import Statistics
from dexport.passes.quantization.unit import ROW, Indexed, UnitFunction, part_key, scale_names
from dexport.passes.quantization.unit_flow import Flow, Live, joined_rows
from dexport.passes.quantization.unit_site import real_weights
from dexport.passes.quantization.units import GRANULARITIES, Span, spans
from dexport.passes.quantization.values import SiteValues
from dexport.passes.quantization.weights import WeightGrid, dequantize

Report = Callable[[str, float | None], None]
_PROMPTS = 8  # encoded at a time


def refine(
    pipeline: TorchPipeline,
    recipe: Recipe,
    statistics: Statistics,
    scratch: Scratch,
    report: Report = lambda stage, done: None,
    overrides: Mapping[str, Mapping[str, Treatment | None]] | None = None,
) -> Refine:
    """What `quantized_split` calls to learn rounding, for the sections that ask for it.

    Args:
        pipeline: the unquantized pipeline, at the size that was calibrated.
        report: called after every unit with its output error before and after, and the fraction that is done.
        overrides: component -> site -> treatment, those given to `quantized_split`.

    Raises:
        UserError: a section other than "denoiser" asks for reconstruction, or the unit is unknown.
    """
    for name, section in recipe.sections.items():
        where = f"recipe {recipe.name}: {name}: reconstruction"
        if section.reconstruction is None:
            continue
        if name != "denoiser":
            raise UserError(where, expected="none: samples are kept of what enters the loop alone", got="one", fix="remove it")
        if (unit := section.reconstruction.unit) not in GRANULARITIES:
            raise UserError(f"{where}: unit", expected=" or ".join(GRANULARITIES), got=repr(unit), fix="choose one of them")

    def refined(graph: Graph, decisions: Decisions) -> Decisions:
        section = recipe.sections["denoiser"]
        assert section.reconstruction is not None
        wanted = _learned(graph, section, (overrides or {}).get(graph.name, {})) & decisions.values.keys()
        entering = loop_inputs(pipeline, statistics)
        return _Reconstruction(graph, decisions, section.reconstruction, wanted, entering, scratch, report).decisions()

    return refined


def _learned(graph: Graph, section: Section, overrides: Mapping[str, Treatment | None]) -> set[str]:
    """The sites whose rounding is learned."""
    treatments = section.treatments([site.name for site in sites(graph)], ends(graph), "reconstruction") | dict(overrides)
    return {n for n, t in treatments.items() if t is not None and t.weights is not None and t.weights.rounding == "adaround"}


@dataclass(frozen=True)
class LoopInputs:
    """What entered the loop, a row per sample and half of the guidance: input name -> values, and the step of each row, int64 [S]."""

    values: Mapping[str, Indexed]
    steps: torch.Tensor


def loop_inputs(pipeline: TorchPipeline, statistics: Statistics) -> LoopInputs:
    """Makes the loop's inputs for the samples of a calibration again.

    Raises:
        UserError: as `TorchPipeline.run`.
    """
    samples, timesteps = statistics.samples, torch.tensor(statistics.schedule.timesteps)
    halves = _halves(pipeline, len(timesteps))
    rows = [(i, half) for i, step in enumerate(samples.steps.tolist()) for half in halves[step]]
    sample, half = (torch.tensor(column) for column in zip(*rows))
    steps = samples.steps[sample]
    table = pipeline.split.denoiser.table
    by_step = {} if table is None else run(table, {table.inputs[0].name: timesteps})
    by_prompt, place = _prompt_values(pipeline, statistics, timesteps)
    prompt = place[half, samples.pictures[sample]]
    count = place.numel()

    def values(port: Port) -> Indexed:
        if Kind.LATENT in port.kinds:
            return Indexed(samples.latents.to(port.dtype), sample)
        if port.kinds == {Kind.STEP}:
            return Indexed(by_step[port.name], steps)
        if port.shape[:1] != (BATCH,):
            return Indexed(by_prompt[port.name], None)
        return Indexed(by_prompt[port.name], steps * count + prompt if Kind.STEP in port.kinds else prompt)

    return LoopInputs({port.name: values(port) for port in pipeline.split.denoiser.loop.inputs}, steps)


def _halves(pipeline: TorchPipeline, steps: int) -> list[tuple[int, ...]]:
    """The halves of the guidance that run at each step, as places among those that there are."""
    decided, options = pipeline.plan, pipeline.plan.options
    use = GuidanceUse(decided.guided, decided.guidance, options.guidance_interval, options.guidance_batching)
    return [(0, 1) if use.on(step, steps) else (1,) if decided.guided else (0,) for step in range(steps)]


def _prompt_values(
    pipeline: TorchPipeline, statistics: Statistics, timesteps: torch.Tensor
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Prompt values [Q, ...] and schedule values [T * Q, V] by name, and the row q of each half and picture, int64 [halves, P]."""
    prompts, parts = statistics.samples.prompts, 2 if pipeline.plan.guided else 1
    found: dict[str, list[torch.Tensor]] = {}
    places, start = [], 0
    for first in range(0, len(prompts), _PROMPTS):
        chunk = prompts[first : first + _PROMPTS]
        for name, tensor in _encoded(pipeline, statistics, chunk, timesteps).items():
            found.setdefault(name, []).append(tensor)
        places.append(torch.arange(start, start + parts * len(chunk)).reshape(parts, len(chunk)))
        start += parts * len(chunk)
    scheduled = {port.name for port in (pipeline.split.denoiser.schedule.outputs if pipeline.split.denoiser.schedule else ())}
    return {n: _merged(t, len(timesteps) if n in scheduled else 0) for n, t in found.items()}, torch.cat(places, 1)


def _merged(chunks: list[torch.Tensor], steps: int) -> torch.Tensor:
    """Chunks of rows in one; where there are steps, they come first in every chunk and in the whole."""
    if not steps:
        return torch.cat(chunks)
    return torch.cat([chunk.reshape(steps, -1, *chunk.shape[1:]) for chunk in chunks], 1).flatten(0, 1)


def _encoded(pipeline: TorchPipeline, statistics: Statistics, prompts: tuple[str, ...], timesteps: torch.Tensor) -> dict[str, torch.Tensor]:
    """What encoders and preludes make of some prompts, and what the request brings, by name."""
    conditions = list(prompts) if pipeline.plan.pipeline.texts else [int(label) for label in prompts]
    values = {name: torch.from_numpy(a.copy()) for name, a in pipeline.request(conditions, statistics.guidance).items()}
    denoiser = pipeline.split.denoiser
    for graph in (*pipeline.split.encoders, denoiser.prompt, denoiser.schedule):
        if graph is not None:
            values |= run(graph, {port.name: timesteps if Kind.STEP in port.kinds else values[port.name] for port in graph.inputs})
    return values


class _Reconstruction:
    """One graph on its way: better values are put in unit by unit."""

    def __init__(
        self,
        graph: Graph,
        decisions: Decisions,
        spec: ReconstructionSpec,
        wanted: set[str],
        entering: LoopInputs,
        scratch: Scratch,
        report: Report,
    ) -> None:
        self._graph, self._decisions, self._spec, self._wanted = graph, decisions, spec, wanted
        self._scratch, self._report = scratch, report
        self._values, self._notes = dict(decisions.values), dict(decisions.notes)
        self._flow = Flow(graph, entering.values, entering.steps, decisions.values, scratch.folder)

    def decisions(self) -> Decisions:
        """Fits all units."""
        listed = spans(self._graph, self._spec.unit, self._wanted)
        for number, span in enumerate(listed):
            if span.reason:
                self._note(span, f"rounded to the nearest: {span.reason}")
                continue
            self._flow.reach(span)
            exact, inner = self._flow.exact_outputs(span, self._spec.inner > 0)
            found, power = self._fitted(span, exact, inner)
            names, learned = scale_names(span, self._values), {}
            for site in span.sites:
                if site.name in self._wanted and found.improved:
                    learned[site.name] = self._with(site.name, found, names)
            self._values |= learned
            if not found.improved:
                self._note(span, "rounded to the nearest: learned rounding was not better")
            self._flow.leave(span, exact, self._values)
            before, after = (_decibel(power, error) for error in (found.before, found.after))
            self._report(f"{span.name}: output SNR {before} -> {after} dB", (number + 1) / len(listed))
        return replace(self._decisions, values=self._values, notes=self._notes)

    def _note(self, span: Span, text: str) -> None:
        for site in span.sites:
            if site.name in self._wanted:
                self._notes[site.name] = "; ".join(filter(None, (self._notes.get(site.name, ""), text)))

    def _fitted(self, span: Span, exact: Live, inner: Live) -> tuple[Reconstructed, float]:
        """What was found, and the mean square of the output."""
        flow, spec = self._flow, self._spec
        sizes = {node: max(float(t.float().square().mean().sqrt()), 1e-12) for node, t in exact.items()}
        unit = UnitFunction(self._graph, span, self._values, flow.static, flow.steps, sizes)
        inputs = flow.inputs(span) | {ROW: torch.arange(flow.rows)}
        names = {site.node: site.name for site in span.sites}
        targets = Outputs(joined_rows(exact, sizes, self._scratch.folder), {names[node.name]: t for node, t in inner.items()})
        weights, scales = self._learnable(span)
        generator = torch.Generator().manual_seed(zlib.crc32(span.name.encode()))
        fit = Fit(unit, weights, inputs, targets, scales)
        found = reconstruct(fit, spec, generator)
        if spec.activations and spec.drop >= 1:
            found = _then_scales(fit, found, spec, generator)
        return found, float(targets.output.square().mean())

    def _learnable(self, span: Span) -> tuple[dict[str, tuple[torch.Tensor, WeightGrid]], dict[str, torch.Tensor]]:
        """Real weights with their grids, and activation scales, by part."""
        weights, scales, names = {}, {}, scale_names(span, self._values)
        for site in span.sites:
            if site.name not in self._wanted:
                continue
            decided = self._values[site.name]
            for number, (part, real) in enumerate(zip(decided.parts, real_weights(self._graph.weights[site.weight], decided), strict=True)):
                key, coarse = part_key(site.name, number), None if part.coarse is None else part.coarse.load()
                weights[key] = (real, WeightGrid(part.format, part.scale.load(), coarse))
                if part.activations is not None and part.activations.scale is not None:
                    scales[names[key]] = part.activations.scale
        return weights, scales

    def _with(self, site: str, found: Reconstructed, names: Mapping[str, str]) -> SiteValues:
        """A site's values with what was found; `names` are those of its scales."""
        decided, parts = self._values[site], []
        for number, part in enumerate(decided.parts):
            key = part_key(site, number)
            codes = self._scratch.keep(f"{self._graph.name}/{key} learned by {self._spec}", {"codes": found.weights[key].codes})["codes"]
            activations = part.activations
            if self._spec.activations and activations is not None and key in names:
                activations = replace(activations, scale=found.scales[names[key]])
            parts.append(replace(part, codes=codes, activations=activations))
        return replace(decided, parts=tuple(parts))


def _then_scales(fit: Fit, found: Reconstructed, spec: ReconstructionSpec, generator: torch.Generator) -> Reconstructed:
    """Learns activation scales for codes that stay: BRECQ and Q-Diffusion first fit weights to exact activations."""
    weights = {name: (dequantize(found.weights[name]), grid) for name, (_, grid) in fit.weights.items()}
    still = replace(spec, learning_rate=0.0, rounding_weight=0.0, drop=0.0)
    then = reconstruct(replace(fit, weights=weights), still, generator)
    return replace(then, before=found.before, improved=found.improved or then.improved) if then.improved else found


def _decibel(power: float, error: float) -> str:
    return "inf" if error <= 0 or power <= 0 else f"{10 * math.log10(power / error):.1f}"
