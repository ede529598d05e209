"""Calibration: the real pipeline, run on prompts, becomes statistics of every layer at every step.

Guidance is on, so both halves of it are counted; steps are those of the sampling program, never counts of calls. Pictures are made in
small batches. After each, everything that was seen goes to a file beside the result, from which an interrupted calibration goes on as if
nothing had happened. Memory is what the accumulators take, which is known before, the samples, and one batch of activations.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from dexport.errors import Failure
from dexport.exporter.calibration_file import Progress, load_progress, resume_path, save_progress
from dexport.exporter.calibration_request import CalibrationRequest
from dexport.exporter.calibration_watch import Watcher, latent_port
from dexport.exporter.sigmas import calibrated_schedule
from dexport.exporter.source import source_hash
from dexport.exporter.torch_pipeline import TorchPipeline
from dexport.passes.graph import Graph, value
from dexport.passes.quantization.calibrate import Accumulator, calibration_bytes, empty_accumulator, site_statistics, watched
from dexport.passes.quantization.samplers import chosen_pictures, middle_node, step_counts
from dexport.passes.quantization.statistics import Samples, Statistics, save_statistics

Report = Callable[[str, float | None], None]

_SAMPLE_BYTES = 256 << 20
_BATCH_BYTES = 128 << 20  # of the largest value that is watched
_MOST_PICTURES = 8  # at a time; more gains nothing on a processor
_KEPT_BYTES = 512 << 20
"""Weights of smaller models are read once. Reading those of PixArt-XL/2 for every call takes a few percent of a call of 4 x 256 tokens,
less of larger ones, and saves the memory of the model."""
_MIB = 1 << 20


def calibrate(
    pipeline: TorchPipeline, request: CalibrationRequest, path: Path | None, report: Report = lambda stage, done: None
) -> Statistics:
    """Runs the pipeline and collects statistics of every component that has layers.

    Args:
        pipeline: opened at the size and the number of steps that are to be calibrated; weights of large models are read for every call.
        path: the file to write; with ".resume" added, the file of the unfinished calibration. None writes nothing.
        report: called with what is going on and the fraction that is done.

    Raises:
        UserError: the unfinished calibration at `path` is another one (names the difference), or a condition is of the wrong kind.
        Failure: a value is NaN or Inf (names the layer and step), or the disk is full.
    """
    calibration = Calibration(pipeline, request)
    report(calibration.summary(), 0.0)
    unfinished = None if path is None else resume_path(path)
    if unfinished is not None and unfinished.exists():
        calibration.load(unfinished)
        report(f"go on after {calibration.pictures} pictures", calibration.pictures / len(request.conditions))
    while calibration.pictures < len(request.conditions):
        calibration.batch(report)
        if unfinished is not None and calibration.pictures < len(request.conditions):  # after the last, the result itself is written
            calibration.save(unfinished)
    statistics = calibration.statistics()
    if path is not None and unfinished is not None:
        save_statistics(statistics, path)
        unfinished.unlink(missing_ok=True)
    return statistics


class Calibration:
    """A calibration on its way: `pictures` says how many are made.

    Attributes:
        nbytes: what the accumulators take.
    """

    def __init__(self, pipeline: TorchPipeline, request: CalibrationRequest) -> None:
        loop = pipeline.split.denoiser.loop
        self._plan, self._request, self._loop = pipeline.plan, request, loop
        self._steps = len(pipeline.program.iterations)
        graphs = _graphs(pipeline)
        self.accumulators: dict[str, tuple[Accumulator, ...]] = {
            graph.name: tuple(empty_accumulator(entry, graph.name, request.seed) for entry in watched(graph, steps))
            for graph, steps in graphs
        }
        self.nbytes = accumulator_bytes(pipeline)
        self.schedule = calibrated_schedule(pipeline.plan.scheduler, pipeline.solver)
        self.pictures = 0
        self._batch = _pictures_at_a_time([graph for graph, _ in graphs], 2 if pipeline.plan.guided else 1)
        small = sum(w.nbytes for graph, _ in graphs for w in graph.used_weights().values()) <= _KEPT_BYTES
        self._pipeline = pipeline.materialised() if pipeline.device == "cpu" and small else pipeline
        self._kept: dict[tuple[int, int], torch.Tensor] = {}  # (step, picture) -> latent
        self._counts = None if request.sampler.needs_features else self._count(None)
        self._identity = self._describe()

    def summary(self) -> str:
        """What will be done, and how much memory it takes."""
        layers = sum(len(a.about.sites) for found in self.accumulators.values() for a in found if not a.about.attention)
        what = f"calibrate {layers} layers at {self._steps} steps on {len(self._request.conditions)} pictures, {self._batch} at a time"
        samples = min(self._request.samples, self._steps * len(self._request.conditions)) * self._latent_bytes
        return f"{what}; statistics take {self.nbytes / _MIB:.1f} MiB, samples {min(samples, _SAMPLE_BYTES) / _MIB:.1f} MiB"

    def batch(self, report: Report) -> None:
        """Makes the next pictures."""
        first, every = self.pictures, len(self._request.conditions)
        conditions = self._request.conditions[first : first + self._batch]
        count = len(conditions)
        stage = f"pictures {first + 1} to {first + count} of {every}"

        def on_step(step: int) -> None:
            report(stage, (first + count * step / self._steps) / every)

        middle = middle_node(self._loop) if self._counts is None else None
        watcher = Watcher(self.accumulators, self._loop, middle, on_step)
        watcher.start(first, count)
        seeds = range(self._request.seed + first, self._request.seed + first + count)
        try:
            self._pipeline.run(conditions, seeds, guidance=self._request.guidance, watch=watcher)
        except Failure as error:  # said again without what the interpreter of the graph adds to the message
            raise Failure(error.where, expected=error.expected, got=error.got, fix=error.fix) from error
        if self._counts is None:
            self._counts = self._count(torch.stack([watcher.features[step] for step in range(self._steps)]))
        for step, pictures in enumerate(chosen_pictures(self._counts, every, self._request.seed)):
            self._kept |= {(step, p): watcher.latents[step][p - first].clone() for p in pictures if first <= p < first + count}
        self.pictures += count

    def save(self, path: Path) -> None:
        """Writes everything so far."""
        samples = {f"samples/{step}/{picture}": latent for (step, picture), latent in self._kept.items()}
        progress = Progress(self.pictures, None if self._counts is None else tuple(self._counts))
        save_progress(path, self._tensors() | samples, self._identity, progress)

    def load(self, path: Path) -> None:
        """Reads what `save` wrote.

        Raises:
            UserError: it is of another calibration.
        """
        progress, rest = load_progress(path, self._tensors(), self._identity)
        self.pictures = progress.pictures
        self._counts = None if progress.counts is None else list(progress.counts)
        for name, latent in rest.items():
            _, step, picture = name.split("/")
            self._kept[int(step), int(picture)] = latent

    def statistics(self) -> Statistics:
        """Everything that was seen."""
        request = self._request
        places = sorted(self._kept)
        seeds = tuple(range(request.seed, request.seed + len(request.conditions)))
        samples = Samples(
            prompts=tuple(str(c) for c in request.conditions),
            seeds=seeds,
            latents=torch.stack([self._kept[place] for place in places]),
            steps=torch.tensor([step for step, _ in places]),
            pictures=torch.tensor([picture for _, picture in places]),
        )
        return Statistics(
            model=self._identity["model"],
            schedule=self.schedule,
            size=self._plan.sizes[0],
            guidance=self._guidance,
            sampler=request.sampler.name,
            samples=samples,
            components={name: site_statistics(found) for name, found in self.accumulators.items()},
        )

    @property
    def _guidance(self) -> float:
        return self._plan.guidance if self._request.guidance is None else self._request.guidance

    @property
    def _latent_bytes(self) -> int:
        return 4 * math.prod(int(size) for size in latent_port(self._loop).shape[1:])

    def _count(self, features: torch.Tensor | None) -> list[int]:
        request = self._request
        total = max(1, min(request.samples, _SAMPLE_BYTES // self._latent_bytes))
        return step_counts(request.sampler, self._steps, len(request.conditions), total, request.seed, features)

    def _tensors(self) -> dict[str, torch.Tensor]:
        pairs = [(f"{name}/{i}", a) for name, found in self.accumulators.items() for i, a in enumerate(found)]
        return {f"{place}/{name}": tensor for place, a in pairs for name, tensor in a.tensors().items()}

    def _describe(self) -> dict[str, Any]:
        """Everything that decides what is seen: two calibrations with equal descriptions see the same."""
        decided, request = self._plan, self._request
        layers = [dataclasses.asdict(a.about) for found in self.accumulators.values() for a in found]
        height, width = decided.sizes[0]
        return {
            "model": source_hash(decided.directory),
            "loras": list(decided.options.loras),
            "scheduler": self.schedule.scheduler,
            "steps": self._steps,
            "timesteps": list(self.schedule.timesteps),
            "size": f"{height}x{width}",
            "frames": decided.pipeline.frames,
            "precision": str(decided.dtype).removeprefix("torch."),
            "guidance": self._guidance,
            "guidance use": [*decided.options.guidance_interval, decided.options.guidance_batching],
            "pictures": len(request.conditions),
            "prompts": _digest(request.conditions),
            "seed": request.seed,
            "sampler": dataclasses.asdict(request.sampler),
            "samples": request.samples,
            "pictures at a time": self._batch,
            "layers": _digest(layers),
        }


def accumulator_bytes(pipeline: TorchPipeline) -> int:
    """The memory that a calibration's statistics take, whatever it sees."""
    return sum(calibration_bytes(graph, steps) for graph, steps in _graphs(pipeline))


def _graphs(pipeline: TorchPipeline) -> list[tuple[Graph, int]]:
    """What is calibrated, and at how many steps: the loop at all of them, what runs once per prompt or picture at one."""
    split, steps = pipeline.split, len(pipeline.program.iterations)
    return [(graph, steps if graph is split.denoiser.loop else 1) for graph in split.graphs() if split.section(graph)]


def _pictures_at_a_time(graphs: Sequence[Graph], halves: int) -> int:
    """As many as keep the largest watched value small."""
    largest = 1
    for graph in graphs:
        nodes = {node.name: node for node in graph.module.graph.nodes}
        shapes = [value(nodes[entry.node]).shape for entry in watched(graph, 1)]
        largest = max([largest, *(4 * math.prod(size for size in shape if isinstance(size, int)) for shape in shapes)])
    return max(1, min(_MOST_PICTURES, _BATCH_BYTES // (largest * halves)))


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
