"""Sensitivity: how much the pictures suffer if one layer, or a few that belong together, is treated and all else stays as it is.

    metric       what is measured                                          cost
    sqnr         the weight (passes/quantization/sensitivity.py)           no run
    output       the layer's output on rows of the calibration             no run
    model        the denoiser's output at some steps of real runs          a few calls of the loop per layer and choice
    end-to-end   the pictures at the same seeds, and the above             a run per layer and choice

Fidelity and prompt-following are measured apart, because they fail in different layers: MixDQ (arXiv 2405.17873, section 3.3) finds that
cross-attention and feed-forward decide what a picture shows and the rest how good it looks, ViDiT-Q (arXiv 2406.02540, section 3.4) ranks
cross-attention by CLIPScore alone. Fidelity is the error of the guided output u + g (c - u) and of the pictures. Prompt-following is the
loss of a scorer where the user has one. Otherwise it is the error of c - u, what the prompt adds to the output:

    prompt = |(c' - u') - (c - u)|^2 / |c - u|^2

An error that is in both halves cancels there; it makes another picture of the same prompt. That needs no model that judges pictures.

The runs are those of the calibration: its first pictures, from the same noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dexport.errors import Failure, UserError
from dexport.exporter.golden import fits
from dexport.exporter.moments import Moment, answer, first_pictures, moments
from dexport.exporter.quality import picture_psnr
from dexport.exporter.quantization import written
from dexport.exporter.scorer import Scorer, scores
from dexport.exporter.sensitivity_table import Harms, SensitivityTable, resumed, save_table
from dexport.exporter.torch_pipeline import TorchPipeline
from dexport.passes.graph import Graph, materialise
from dexport.passes.quantization.decide import Decisions
from dexport.passes.quantization.quantize import quantize
from dexport.passes.quantization.sensitivity import LayerMetric, layer_errors, step_ranges
from dexport.passes.quantization.statistics import Statistics
from dexport.passes.quantization.values import SiteValues

Array = npt.NDArray[Any]
METRICS = {"sqnr": "weight", "output": "layer", "model": "output", "end-to-end": "picture"}
"""Metric -> the measure that it is about."""
MOST_PICTURES = 32
_MOMENTS_PER_RANGE = 2
BROKEN = 1e6
"""Harm of a treatment that makes NaN."""

Report = Callable[[str, float | None], None]
Units = Mapping[str, tuple[str, ...]]
Choices = Mapping[str, Decisions]


@dataclass(frozen=True, kw_only=True)
class Probe:
    """How to measure.

    Attributes:
        ranges: of the steps, told apart.
        pictures: of the calibration, run again; at most 32.
        scorer, scorer_name: measures prompt-following, and what it is called.
    """

    metric: str = "output"
    ranges: int = 4
    pictures: int = 4
    scorer: Scorer | None = None
    scorer_name: str = ""

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise UserError("metric", expected=" or ".join(METRICS), got=repr(self.metric), fix="choose one of them")
        if not 1 <= self.pictures <= MOST_PICTURES:
            raise UserError("pictures", expected=f"1 to {MOST_PICTURES}", got=str(self.pictures), fix="4 is usual")
        if self.ranges < 1:
            raise UserError("ranges", expected="at least 1", got=str(self.ranges), fix="4 is usual")


def measure_sensitivity(
    pipeline: TorchPipeline,
    component: str,
    choices: Choices,
    units: Units,
    statistics: Statistics,
    probe: Probe,
    *,
    about: Mapping[str, Any] | None = None,
    path: Path | None = None,
    report: Report = lambda stage, done: None,
) -> SensitivityTable:
    """Measures every unit under every choice.

    Args:
        component: name of a graph of the pipeline.
        choices: name -> what was decided for every site; a unit is measured under a choice that treats all of its sites.
        units: name -> sites that are treated together.
        about: more that decides the figures (the treatments), plain JSON.
        path: a JSON file that is written after every unit, and gone on from.

    Raises:
        UserError: the file is of another measurement, or the metric does not suit the component.
    """
    graph = pipeline.graphs[component]
    ranges = step_ranges(_steps(pipeline, graph, statistics, probe), probe.ranges)
    table = SensitivityTable(
        component=component,
        metric=probe.metric,
        measure=METRICS[probe.metric],
        ranges=tuple((r.start, r.stop - 1) for r in ranges),
        units=units,
        identity=_identity(statistics, component, probe) | dict(about or {}),
    )
    if path is not None:
        table = resumed(table, path)
    if probe.metric in ("sqnr", "output"):
        table = _by_layers(table, graph, choices, statistics, ranges, report)
        if path is not None:
            save_table(table, path)
        return table
    todo = [(u, c) for u, s in units.items() for c, decided in choices.items() if decided.values.keys() >= set(s) and not table.has(u, c)]
    trial = _Trial(pipeline, graph, statistics, probe, ranges) if todo else None
    for count, (unit, choice) in enumerate(todo):
        assert trial is not None
        report(f"sensitivity of {unit} to {choice}", count / len(todo))
        values = choices[choice].values
        table = table.with_harms(unit, choice, trial.harms({site: values[site] for site in units[unit]}))
        if path is not None:
            save_table(table, path)
    return table


def _steps(pipeline: TorchPipeline, graph: Graph, statistics: Statistics, probe: Probe) -> int:
    loop = pipeline.split.denoiser.loop
    if graph is not loop:
        if probe.metric == "model":
            fix = "choose another metric"
            raise UserError("metric", expected="sqnr, output or end-to-end for a part that is no denoiser", got="model", fix=fix)
        return 1
    return len(pipeline.program.iterations) if probe.metric in ("model", "end-to-end") else len(statistics.schedule.timesteps)


def _identity(statistics: Statistics, component: str, probe: Probe) -> dict[str, Any]:
    schedule = statistics.schedule
    common = {
        "model": statistics.model,
        "scheduler": schedule.scheduler,
        "steps": schedule.steps,
        "size": "x".join(map(str, statistics.size)),
    }
    used = probe.pictures if probe.metric in ("model", "end-to-end") else len(statistics.samples.prompts)
    runs = {"prompts": list(statistics.samples.prompts[:used]), "seeds": list(statistics.samples.seeds[:used])}
    scorer = probe.scorer_name if probe.metric == "end-to-end" else ""
    return {**common, "component": component, "metric": probe.metric, "guidance": statistics.guidance, **runs, "scorer": scorer}


def _by_layers(
    table: SensitivityTable, graph: Graph, choices: Choices, statistics: Statistics, ranges: Sequence[range], report: Report
) -> SensitivityTable:
    """Metrics that look at one layer: those of a unit are added."""
    metric: LayerMetric = "sqnr" if table.metric == "sqnr" else "output"
    seen = statistics.components.get(graph.name, {})
    unit_of = {site: unit for unit, members in table.units.items() for site in members}
    for number, (choice, decided) in enumerate(choices.items()):
        report(f"sensitivity of {len(unit_of)} layers to {choice}", number / len(choices))
        found: dict[str, list[tuple[float, ...]]] = {}
        for site, errors in layer_errors(graph, decided, seen, metric, tuple(ranges)):
            if site in unit_of:
                found.setdefault(unit_of[site], []).append(errors)
        for unit, members in found.items():
            if len(members) == len(table.units[unit]):
                summed = tuple(_bounded(sum(values)) for values in zip(*members))
                table = table.with_harms(unit, choice, {table.measure: summed})
    return table


class PictureTrial:
    """The pictures of a pipeline, and how far they go astray if some sites of a component are treated.

    Args:
        pipeline: with its weights in memory, where they fit.
        pictures: how many of the calibration's.
    """

    def __init__(self, pipeline: TorchPipeline, component: str, statistics: Statistics, pictures: int) -> None:
        self._pipeline, self._graph, self._statistics = pipeline, pipeline.graphs[component], statistics
        self._conditions, self._seeds = first_pictures(pipeline, statistics, pictures)
        self.prompts = [str(c) for c in self._conditions]
        self.reference = pipeline.run(self._conditions, self._seeds, guidance=statistics.guidance).pictures

    def pictures(self, values: Mapping[str, SiteValues]) -> Array | None:
        """uint8 [n, H, W, 3] (or videos); None where NaN came up on the way."""
        split = self._pipeline.split
        changed = written(split, self._graph, Decisions(values, {}, {}), self._statistics)
        loaded = {name: graph if name == split.table_name else materialise(graph) for name, graph in changed.items()}
        try:
            return self._pipeline.with_graphs(loaded).run(self._conditions, self._seeds, guidance=self._statistics.guidance).pictures
        except Failure:
            return None

    def error(self, pictures: Array | None) -> float:
        """Mean squared error, of 1 as the largest, the mean over pictures."""
        return BROKEN if pictures is None else float(np.mean(10 ** (-picture_psnr(self.reference, pictures) / 10)))


def in_memory(pipeline: TorchPipeline) -> TorchPipeline:
    """The pipeline with its weights loaded, if they fit into memory."""
    return pipeline.materialised() if pipeline.device == "cpu" and fits(tuple(pipeline.split.graphs())) else pipeline


class _Trial:
    """A pipeline in which a few layers can be treated, and what it does without."""

    def __init__(self, pipeline: TorchPipeline, graph: Graph, statistics: Statistics, probe: Probe, ranges: Sequence[range]) -> None:
        pipeline = in_memory(pipeline)
        self._graph, self._statistics, self._ranges = pipeline.graphs[graph.name], statistics, ranges
        self._times = torch.tensor(statistics.schedule.timesteps)
        in_loop = self._graph is pipeline.split.denoiser.loop
        wanted = [step for span in ranges for step in _spread(span, _MOMENTS_PER_RANGE)]
        self._moments = moments(pipeline, statistics, probe.pictures, wanted) if in_loop else ()
        self._pictures = PictureTrial(pipeline, graph.name, statistics, probe.pictures) if probe.metric == "end-to-end" else None
        self._scorer = probe.scorer
        self._scores = None
        if self._pictures is not None and probe.scorer is not None:
            self._scores = scores(probe.scorer, self._pictures.prompts, self._pictures.reference)

    def harms(self, values: Mapping[str, SiteValues]) -> Harms:
        """What treating these sites does."""
        found: dict[str, tuple[float, ...]] = {}
        if self._moments:
            found |= self._of_output(values)
        if self._pictures is not None:
            found |= self._of_pictures(self._pictures, values)
        return found

    def _of_output(self, values: Mapping[str, SiteValues]) -> dict[str, tuple[float, ...]]:
        quantized = quantize(self._graph, values)
        graph = materialise(quantized.graph)
        output, prompt = [], []
        for span in self._ranges:
            inside = [m for m in self._moments if m.step in span]
            pairs = [(m, answer(graph, m, quantized.rows, self._times)) for m in inside]
            output.append(_relative([(self._guided(m, m.output), self._guided(m, now)) for m, now in pairs]))
            directions = [(_direction(m, m.output), _direction(m, now)) for m, now in pairs]
            prompt.append(_relative([(before, after) for before, after in directions if before is not None and after is not None]))
        found = {"output": tuple(value or 0.0 for value in output)}
        known = [value for value in prompt if value is not None]
        # Where guidance is off for a range of steps, the prompt adds nothing there that could be compared.
        return found | ({"prompt": tuple(value or 0.0 for value in prompt)} if known else {})

    def _guided(self, moment: Moment, output: torch.Tensor) -> torch.Tensor:
        halves = moment.halves(output)
        return output if halves is None else torch.lerp(*halves, self._statistics.guidance)

    def _of_pictures(self, trial: PictureTrial, values: Mapping[str, SiteValues]) -> dict[str, tuple[float, ...]]:
        pictures = trial.pictures(values)
        found: dict[str, tuple[float, ...]] = {"picture": (trial.error(pictures),)}
        if self._scores is None or self._scorer is None:
            return found
        if pictures is None:
            return found | {"score": (BROKEN,)}
        lost = self._scores - scores(self._scorer, trial.prompts, pictures)
        return found | {"score": (max(float(np.mean(lost)), 0.0),)}


def _spread(span: range, count: int) -> list[int]:
    """At most `count` steps of a range, evenly."""
    count = min(count, len(span))
    return [span[(2 * i + 1) * len(span) // (2 * count)] for i in range(count)]


def _direction(moment: Moment, output: torch.Tensor) -> torch.Tensor | None:
    """What the prompt adds: conditional less unconditional."""
    halves = moment.halves(output)
    return None if halves is None else halves[1] - halves[0]


def _relative(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> float | None:
    """Noise over signal of all pairs together, None for none."""
    if not pairs:
        return None
    noise = sum(float((now - before).double().square().sum()) for before, now in pairs)
    signal = sum(float(before.double().square().sum()) for before, _ in pairs)
    return _bounded(noise / max(signal, 1e-30))


def _bounded(harm: float) -> float:
    """The harm, that of a broken model where it is larger or no number."""
    return harm if harm < BROKEN else BROKEN
