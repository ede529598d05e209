"""`dexport sensitivity` without its door: a model, its statistics and a recipe become a table of sensitivities."""

from __future__ import annotations

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path

from dexport.errors import UserError
from dexport.exporter.calibration_request import calibration_conditions
from dexport.exporter.mixed_precision import keeps
from dexport.exporter.options import BuildOptions
from dexport.exporter.quantization import treatments_of
from dexport.exporter.scorer import load_scorer
from dexport.exporter.sensitivity import Probe, Report, measure_sensitivity
from dexport.exporter.sensitivity_table import SensitivityTable
from dexport.exporter.source import source_hash
from dexport.exporter.torch_pipeline import TorchPipeline, open_torch_pipeline
from dexport.passes.quantization.decide import decide
from dexport.passes.quantization.matching import check_statistics
from dexport.passes.quantization.recipe import Recipe, Treatment
from dexport.passes.quantization.recipe_file import find_recipe
from dexport.passes.quantization.scratch import Scratch
from dexport.passes.quantization.statistics import Statistics, load_statistics


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What to measure.

    Attributes:
        statistics: a file of `dexport calibrate`.
        prompts: to run instead of the calibration's first ones, with its seeds.
        scorer: "FILE.py:FUNCTION".
        output: a JSON file that is written on the way and gone on from.
    """

    model: str
    statistics: Path
    recipe: str
    metric: str
    ranges: int
    pictures: int
    prompts: tuple[str, ...] | None
    scorer: str | None
    output: Path


def model_sensitivity(asked: Asked, report: Report) -> SensitivityTable:
    """Opens the pipeline as it was calibrated, and measures.

    Raises:
        UserError: statistics of another model, a recipe that is unknown or leaves the denoiser alone, an output of another measurement.
    """
    recipe, statistics = find_recipe(asked.recipe), load_statistics(asked.statistics)
    scorer = None if asked.scorer is None else load_scorer(asked.scorer)
    probe = Probe(metric=asked.metric, ranges=asked.ranges, pictures=asked.pictures, scorer=scorer, scorer_name=asked.scorer or "")
    if asked.prompts is not None:
        statistics = _with_prompts(statistics, asked.prompts[: probe.pictures])
    report(f"capture {asked.model}", None)
    pipeline = open_torch_pipeline(_options(asked.model, statistics))
    decided = pipeline.plan
    check_statistics(statistics, str(asked.statistics), model=source_hash(decided.directory), size=decided.sizes[0])
    calibration_conditions(decided, asked.prompts, None)  # refuses what is no class label
    with tempfile.TemporaryDirectory() as folder:
        return recipe_sensitivity(pipeline, recipe, statistics, probe, Scratch(Path(folder)), asked.output, report)


def recipe_sensitivity(
    pipeline: TorchPipeline,
    recipe: Recipe,
    statistics: Statistics,
    probe: Probe,
    scratch: Scratch,
    path: Path | None = None,
    report: Report = lambda stage, done: None,
) -> SensitivityTable:
    """How every layer of the loop that a recipe treats suffers: from each of its choices, or from what the recipe does to it.

    Args:
        path: a JSON file that is written on the way and gone on from.

    Raises:
        UserError: the recipe leaves the loop alone, or the file is of another measurement.
    """
    graph, section = pipeline.split.denoiser.loop, recipe.section("denoiser")
    treatments = {} if section is None else treatments_of(graph, section, (), f"recipe {recipe.name}: denoiser")
    treated = {name: t for name, t in treatments.items() if t is not None}
    if section is None or not treated:
        fix = "choose another recipe"
        raise UserError(f"recipe {recipe.name}", expected="layers of the denoiser that it treats", got="none", fix=fix)
    mixed = section.mixed_precision
    named: dict[str, dict[str, Treatment]] = {recipe.name: treated}
    if mixed is not None:
        named = {choice: dict.fromkeys(treated, t) for choice, t in mixed.choices.items() if not keeps(t)}
    seen = statistics.components.get(graph.name, {})
    choices = {choice: decide(graph, wanted, seen, scratch) for choice, wanted in named.items()}
    about = {"recipe": recipe.name, "treatments": {name: sorted({repr(t) for t in ts.values()}) for name, ts in named.items()}}
    units = {name: (name,) for name in treated}
    return measure_sensitivity(pipeline, graph.name, choices, units, statistics, probe, about=about, path=path, report=report)


def _options(model: str, statistics: Statistics) -> BuildOptions:
    """The pipeline as it was calibrated."""
    schedule = statistics.schedule
    return BuildOptions(
        model=model,
        target="cpu",
        precision="fp32",
        sizes=(statistics.size,),
        steps=(schedule.steps,),
        scheduler=schedule.scheduler,
        guidance=statistics.guidance,
    )


def _with_prompts(statistics: Statistics, prompts: tuple[str, ...]) -> Statistics:
    """The statistics with other pictures to run: these prompts, with the seeds of the calibration."""
    first = statistics.samples.seeds[0] if statistics.samples.seeds else 0
    samples = dataclasses.replace(statistics.samples, prompts=prompts, seeds=tuple(range(first, first + len(prompts))))
    return dataclasses.replace(statistics, samples=samples)
