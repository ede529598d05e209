"""Moments: what entered the denoiser's loop at some steps of a real run, and what it answered, to be asked again of changed loops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from dexport.exporter.torch_pipeline import TorchPipeline
from dexport.passes.graph import Evaluator, Graph
from dexport.passes.quantization.statistics import Statistics
from dexport.passes.quantization.step_table import QUANTIZATION_VALUES


@dataclass(frozen=True)
class Moment:
    """One step of a run.

    Attributes:
        step, timestep: of the pipeline's schedule.
        calls: the inputs of every call, port -> value; two where the halves of the guidance run in turn.
        output: what the loop answered, calls joined, float32 [rows, ...]; with guidance the unconditional rows come first.
        pictures: rows per half.
    """

    step: int
    timestep: float
    calls: tuple[Mapping[str, torch.Tensor], ...]
    output: torch.Tensor
    pictures: int

    def halves(self, output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The unconditional and conditional rows of an output, None without guidance."""
        return (output[: self.pictures], output[self.pictures :]) if len(output) == 2 * self.pictures else None


def moments(pipeline: TorchPipeline, statistics: Statistics, pictures: int, steps: Sequence[int]) -> tuple[Moment, ...]:
    """Runs the first pictures of a calibration again, from the same noise, and keeps the given steps.

    Raises:
        Failure: a component gives NaN or Inf.
    """
    wanted, loop = set(steps), pipeline.split.denoiser.loop
    names = {node.name: port for port, node in loop.placeholders().items()}
    calls: dict[int, list[dict[str, torch.Tensor]]] = {}
    outputs: dict[int, list[torch.Tensor]] = {}

    def watch(component: str, step: int, node: fx.Node, value: Any) -> None:
        if component != loop.name or step not in wanted:
            return
        if node.name in names:
            made = calls.setdefault(step, [])
            if names[node.name] == loop.inputs[0].name:
                made.append({})
            made[-1][names[node.name]] = value.clone()
        elif node.op == "output":
            outputs.setdefault(step, []).append(value[0].float().clone())

    conditions, seeds = first_pictures(pipeline, statistics, pictures)
    pipeline.run(conditions, seeds, guidance=statistics.guidance, watch=watch)
    times = pipeline.program.timesteps
    return tuple(Moment(k, times[k], tuple(calls[k]), torch.cat(outputs[k]), len(seeds)) for k in sorted(wanted))


def first_pictures(pipeline: TorchPipeline, statistics: Statistics, pictures: int) -> tuple[list[Any], list[int]]:
    """Conditions (prompts, or class labels) and seeds of the first pictures of a calibration."""
    samples = statistics.samples
    texts = samples.prompts[:pictures]
    conditions: list[Any] = list(texts) if pipeline.plan.pipeline.texts else [int(text) for text in texts]
    return conditions, list(samples.seeds[:pictures])


def answer(graph: Graph, moment: Moment, rows: torch.Tensor | None, calibrated: torch.Tensor) -> torch.Tensor:
    """What a changed loop answers at a moment, as `Moment.output`.

    Args:
        graph: the loop, perhaps with packed step values of quantization.
        rows: their rows, [T, K].
        calibrated: timesteps of the rows, [T]; the nearest is taken.
    """
    extra: dict[str, torch.Tensor] = {}
    if rows is not None:
        nearest = int((calibrated - moment.timestep).abs().argmin())
        extra = {QUANTIZATION_VALUES: rows[nearest : nearest + 1]}
    evaluator = Evaluator(graph.module, graph.weights)
    with torch.no_grad():
        answers = [evaluator.run(*({**call, **extra}[port.name] for port in graph.inputs))[0] for call in moment.calls]
    return torch.cat([a.float() for a in answers])
