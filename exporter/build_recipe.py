"""Quantization inside `build`: calibrate or load statistics, apply the recipe to every size, judge the pictures, repair what is broken."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dexport.errors import Failure
from dexport.exporter.calibration import calibrate
from dexport.exporter.calibration_request import CalibrationRequest, Conditions, calibration_conditions
from dexport.exporter.effective_recipe import EffectiveRecipe
from dexport.exporter.golden import fits
from dexport.exporter.guards import checked_run, require_quality
from dexport.exporter.options import Size
from dexport.exporter.plan import Plan
from dexport.exporter.plugin_layers import keeping_misfits
from dexport.exporter.prompts import read_prompts
from dexport.exporter.quality import Quality, measure
from dexport.exporter.quantization import QuantizedSplit
from dexport.exporter.quantizer import find_quantizer
from dexport.exporter.report.data import Pair, pairs_of
from dexport.exporter.scorer import load_scorer, scores
from dexport.exporter.sigmas import sigmas
from dexport.exporter.smallest_repair import Repair, Verdict, smallest_repair
from dexport.exporter.solver import Solver
from dexport.exporter.source import source_hash
from dexport.exporter.split import Split
from dexport.exporter.torch_pipeline import Run, TorchPipeline, torch_pipeline
from dexport.exporter.weights import open_checkpoint
from dexport.passes.quantization.matching import check_statistics, match_schedule
from dexport.passes.quantization.recipe import Recipe
from dexport.passes.quantization.samplers import Sampler
from dexport.passes.quantization.scratch import Scratch
from dexport.passes.quantization.statistics import Statistics, load_statistics

Report = Callable[[str, float | None], None]


@dataclass(frozen=True)
class Judged:
    """How the quantized pipeline compares with the unquantized one at the same seeds; empty where the model does not fit into memory."""

    quality: Quality | None = None
    pairs: tuple[Pair, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class QuantizedBuild:
    """The graphs of every size, quantized, and what is known of their quality.

    Attributes:
        repaired: layers that were kept after all, because the pictures needed them.
    """

    effective: EffectiveRecipe
    sizes: tuple[QuantizedSplit, ...]
    judged: Judged
    repaired: tuple[str, ...] = ()


def apply_recipe(
    decided: Plan, splits: Sequence[Split], solvers: Mapping[tuple[Size, int], Solver], scratch: Path, report: Report
) -> QuantizedBuild:
    """Quantizes the graphs of a build as its plan says.

    Raises:
        UserError: statistics or a checkpoint do not fit, a pattern matches nothing, a budget cannot be met, or a kernel does not have the
            sizes of a layer.
        Failure: pictures are broken or below what was asked for; the error says what would repair them.
    """
    assert decided.recipe is not None
    decided = keeping_misfits(decided, splits)
    return _Application(decided, splits, solvers, Scratch(scratch), report).result()


class _Application:
    def __init__(
        self, decided: Plan, splits: Sequence[Split], solvers: Mapping[tuple[Size, int], Solver], scratch: Scratch, report: Report
    ) -> None:
        assert decided.recipe is not None
        self._plan, self._splits, self._scratch, self._report = decided, splits, scratch, report
        self._effective = decided.recipe
        self._pipeline = torch_pipeline(decided, splits[0], solvers[splits[0].size, decided.steps[0]])
        self._conditions = _conditions(decided)
        self._statistics = self._statistics_for(self._effective.recipe, solvers) if self._effective.recipe.calibrated else None
        checkpoint = self._effective.checkpoint
        if checkpoint is not None:
            report("compare the checkpoint with the pipeline", None)
            folder = _denoiser_folder(decided, splits[0].size)
            checkpoint.check(open_checkpoint(folder), folder)
        self._quantizer = find_quantizer(
            self._pipeline,
            self._effective.recipe,
            self._statistics,
            scratch,
            options=decided.options,
            report=report,
            checkpoint=checkpoint,
        )
        self._judges = decided.options.quality_prompts > 0 and fits(tuple(splits[0].graphs()))
        self._reference: Run | None = None

    def result(self) -> QuantizedBuild:
        """All sizes quantized and judged; with `repair`, layers are kept until the pictures are good."""
        options = self._plan.options
        skip = options.skip
        sizes = self._quantized(skip)
        kept: tuple[str, ...] = ()
        try:
            judged = self._judge(sizes[0])
        except Failure as failure:
            repair = self._search(sizes[0], failure)
            if not options.repair:
                raise type(failure)(failure.where, expected=failure.expected, got=failure.got, fix=_keep(repair.kept)) from failure
            kept = repair.kept
            sizes = self._quantized((*skip, *kept))
            judged = self._judge(sizes[0])
        return QuantizedBuild(self._effective, sizes, judged, kept)

    def _statistics_for(self, recipe: Recipe, solvers: Mapping[tuple[Size, int], Solver]) -> Statistics:
        options, plan = self._plan.options, self._plan
        if options.statistics is None:
            request = CalibrationRequest(conditions=self._conditions, sampler=Sampler(recipe.sampler))
            return calibrate(self._pipeline, request, None, self._report)
        statistics = load_statistics(Path(options.statistics))
        check_statistics(statistics, options.statistics, model=source_hash(plan.directory), size=self._splits[0].size)
        if _by_step(recipe):
            for (size, steps), solver in solvers.items():
                levels = sigmas(plan.scheduler, plan.schedule(size, steps))
                match_schedule(statistics.schedule, solver.timesteps, levels, options.statistics)
        return statistics

    def _quantized(self, skip: tuple[str, ...]) -> tuple[QuantizedSplit, ...]:
        found = []
        for split in self._splits:
            self._report(f"quantize {split.size[0]}x{split.size[1]}", None)
            found.append(self._quantizer.split(split, skip))
        return tuple(found)

    def _judge(self, quantized: QuantizedSplit) -> Judged:
        options = self._plan.options
        if not self._judges:
            why = "the model does not fit into memory" if options.quality_prompts else "it was not asked for"
            return Judged(note=f"Quality was not measured: {why}.")
        conditions = self._conditions[: options.quality_prompts]
        seeds = _quality_seeds(len(conditions))
        self._report("compare pictures with the unquantized model", None)
        if self._reference is None:
            self._reference = self._pipeline.materialised().run(conditions, seeds)
        reference = self._reference
        run = checked_run(self._with(quantized), conditions, seeds, reference=reference)
        marks = None
        if options.scorer is not None:
            scorer = load_scorer(options.scorer)
            prompts = [str(c) for c in conditions]
            marks = scores(scorer, prompts, reference.pictures), scores(scorer, prompts, run.pictures)
        quality = measure(reference.pictures, run.pictures, (reference.latents, run.latents), marks)
        require_quality(quality, options.min_psnr, options.min_score)
        return Judged(quality, pairs_of([str(c) for c in conditions], list(seeds), reference.pictures, run.pictures))

    def _with(self, quantized: QuantizedSplit) -> TorchPipeline:
        pipeline = self._pipeline
        return torch_pipeline(pipeline.plan, quantized.split, pipeline.solver).materialised()

    def _search(self, quantized: QuantizedSplit, failure: Failure) -> Repair:
        """The fewest layers that must keep their precision for the pictures to be good."""
        self._report("search for the layers that broke the pictures", None)
        treated = [layer.site for layer in quantized.layers if layer.bits < 16]

        def evaluate(kept: frozenset[str]) -> Verdict:
            trial = self._quantizer.split(self._splits[0], (*self._plan.options.skip, *kept))
            try:
                judged = self._judge(trial)
            except Failure as still:
                return Verdict(False, str(still))
            return Verdict(True, "" if judged.quality is None else f"PSNR {judged.quality.psnr.median:.1f} dB")

        return smallest_repair(treated, evaluate)


def _keep(layers: Sequence[str]) -> str:
    listed = " ".join(f"--skip {name}" for name in layers)
    return f"these layers need their precision; add --repair to keep them, or {listed}"


def _denoiser_folder(decided: Plan, size: Size) -> Path:
    components = decided.pipeline.components(size, decided.dtype)
    return decided.directory / next(c.folder for c in components if c.name == "denoiser")


def _conditions(decided: Plan) -> Conditions:
    options = decided.options
    prompts = None if options.calibration is None else read_prompts(Path(options.calibration))
    return calibration_conditions(decided, prompts, options.calibration_size)


def _quality_seeds(count: int) -> tuple[int, ...]:
    """Other noise than calibration saw, which counts from 0."""
    return tuple(range(10_000, 10_000 + count))


def _by_step(recipe: Recipe) -> bool:
    """Whether some layer has a scale per step."""
    found = []
    for section in recipe.sections.values():
        choices = section.mixed_precision.choices.values() if section.mixed_precision else ()
        found += [section.default, *section.layers.values(), *choices, section.ends if section.ends != "default" else None]
    return any(t is not None and t.activations is not None and t.activations.mode == "table" for t in found)
