"""A pipeline run in PyTorch: the graphs as components of the very sampling program that bundles have.

Calibration, golden outputs, quality figures and sensitivity all hang on this one loop, so what they see is what a bundle will do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import fx

from dexport.exporter.options import BuildOptions
from dexport.exporter.plan import Plan, plan
from dexport.exporter.program import GUIDANCE_SCALE, GuidanceUse, Layout, Tables, compose
from dexport.exporter.solver import Solver, probe
from dexport.exporter.split import Split, split_pipeline
from dexport.exporter.text import tokenizer_json
from dexport.passes.graph import Evaluator, Graph, Kind, materialise
from dexport.runtime.interpreter import run_program
from dexport.runtime.manifest import JsonObject, RequestBuffer
from dexport.runtime.noise import PicturesNoise, TorchNoise
from dexport.runtime.program import Program
from dexport.runtime.request import Asked, request_buffers
from dexport.runtime.text import tokenize

Array = npt.NDArray[Any]
Watch = Callable[[str, int, fx.Node, Any], None]
"""Called with component, step (iterations of the program, never calls), node and value."""

_BATCH = 32


@dataclass(frozen=True)
class Run:
    """What a run made.

    Attributes:
        pictures: uint8 [n, H, W, 3], or [n, frames, H, W, 3] for videos.
        latents: the sample after every step, float32 [T, n, C, h, w].
    """

    pictures: Array
    latents: Array


@dataclass(frozen=True)
class TorchPipeline:
    """A pipeline whose components are graphs."""

    plan: Plan
    split: Split
    solver: Solver
    program: Program
    tables: Tables
    device: str = "cpu"

    @property
    def graphs(self) -> dict[str, Graph]:
        """Component name -> graph."""
        return {graph.name: graph for graph in self.split.graphs()}

    def with_graphs(self, changed: Mapping[str, Graph]) -> TorchPipeline:
        """The same pipeline with some graphs replaced, and the program and step tables made anew."""
        return _composed(self.plan, self.split.with_graphs(changed), self.solver, self.device)

    def materialised(self, device: str = "cpu") -> TorchPipeline:
        """The same pipeline with every weight in the memory of a device, for repeated runs; change its graphs before, not after."""
        kept = self.split.table_name  # has been evaluated
        return replace(self, split=self.split.map(lambda g: g if g.name == kept else materialise(g, device)), device=device)

    def run(
        self,
        conditions: Sequence[str] | Sequence[int],
        seeds: Sequence[int],
        *,
        guidance: float | None = None,
        watch: Watch | None = None,
        batch: int = _BATCH,
    ) -> Run:
        """Makes one picture per condition (prompts, or class labels for a pipeline without text).

        Args:
            seeds: one per picture; the noise is that of `torch.Generator("cpu").manual_seed(seed)`.
            guidance: guidance scale; None takes the plan's.
            watch: sees the value of every node of every component.
            batch: pictures at a time.

        Raises:
            UserError: the wrong kind of condition.
            Failure: a component gave NaN or Inf.
        """
        parts = [self._run(conditions[i : i + batch], seeds[i : i + batch], guidance, watch) for i in range(0, len(conditions), batch)]
        return Run(np.concatenate([p.pictures for p in parts]), np.concatenate([p.latents for p in parts], axis=1))

    def _run(self, conditions: Sequence[Any], seeds: Sequence[int], guidance: float | None, watch: Watch | None) -> Run:
        scale = self.plan.guidance if guidance is None else guidance
        step = 0
        latents: list[Array] = []

        def on_step(index: int, timestep: float, buffers: Mapping[str, Array]) -> None:
            nonlocal step
            step = index + 1
            latents.append(buffers["sample"].astype(np.float32))

        def seen(component: str, node: fx.Node, value: Any) -> None:
            assert watch is not None
            watch(component, min(step, len(self.program.iterations) - 1) if component == self.split.denoiser.loop.name else 0, node, value)

        with torch.no_grad():
            results = run_program(
                self.program,
                {g.name: _Component(g, self.device, partial(seen, g.name) if watch else None) for g in self.split.graphs()},
                self.request(conditions, scale),
                parameters={name: scale for name in self.program.parameters if name == GUIDANCE_SCALE},
                noise=PicturesNoise([TorchNoise(seed) for seed in seeds]),
                tables=self.tables,
                batch=len(conditions),
                on_step=on_step,
            )
        chunks = [results[name] for name in self.program.results]
        pictures = chunks[0] if len(chunks) == 1 else np.concatenate([c if c.ndim == 5 else c[:, None] for c in chunks], axis=1)
        return Run(pictures, np.stack(latents))

    def request(self, conditions: Sequence[Any], guidance: float) -> dict[str, Array]:
        """The request buffers of a batch.

        Raises:
            UserError: the wrong kind of condition.
        """
        texts = text_entries(self.plan)
        loaded = {t.name: Tokenizer.from_str(tokenizer_json(self.plan.directory, t)) for t in self.plan.pipeline.texts}
        parameters = {GUIDANCE_SCALE: guidance}
        asked = Asked(list(conditions), None, None, parameters) if texts else Asked(None, None, list(conditions), parameters)
        guided = self.plan.guided
        batch = len(conditions)
        return request_buffers(
            texts, request_entries(self.plan), self.program, guided, asked, batch, lambda n, p: tokenize(loaded[n], p, n)
        )


def open_torch_pipeline(options: BuildOptions) -> TorchPipeline:
    """Opens a pipeline for its first size and number of steps; weights are read when a component runs.

    Raises:
        UserError: as `plan`.
        Failure: a component cannot be captured.
    """
    decided = plan(options)
    size = decided.sizes[0]
    solver = probe(decided.scheduler, decided.schedule(size, decided.steps[0]))
    return torch_pipeline(decided, split_pipeline(decided, size, [solver]), solver)


def torch_pipeline(decided: Plan, split: Split, solver: Solver) -> TorchPipeline:
    """The pipeline of graphs that exist already."""
    return _composed(decided, split, solver, "cpu")


def _composed(decided: Plan, split: Split, solver: Solver, device: str) -> TorchPipeline:
    layout = Layout(decided.pipeline, split.encoders, split.denoiser, {g.name: g for g in split.decoders})
    use = GuidanceUse(decided.guided, decided.guidance, decided.options.guidance_interval, decided.options.guidance_batching)
    program, tables = compose(layout, solver, split.size, use, "torch")
    return TorchPipeline(decided, split, solver, program, tables, device)


def text_entries(decided: Plan) -> tuple[JsonObject, ...]:
    """The text inputs as the manifest lists them."""
    return tuple(
        {"name": t.name, "tokenizer": f"tokenizer/{t.name}.json", "length": t.length, "outputs": {"ids": t.ids, "mask": t.mask}}
        for t in decided.pipeline.texts
    )


def request_entries(decided: Plan) -> tuple[RequestBuffer, ...]:
    """The other buffers of a request as the manifest lists them."""
    return tuple(
        RequestBuffer(buffer=r.buffer, source=r.source, parameter=r.parameter, negative=r.negative) for r in decided.pipeline.requests
    )


class _Component:
    """A graph as a component of a program: arrays in, arrays out. What only the prompt decides is moved to the device once per run."""

    def __init__(self, graph: Graph, device: str, watch: Callable[[fx.Node, Any], None] | None) -> None:
        self._graph, self._device = graph, device
        self._evaluator = Evaluator(graph.module, graph.weights, watch)
        self._moved: dict[str, tuple[Any, torch.Tensor]] = {}

    def __call__(self, inputs: dict[str, Array]) -> dict[str, Array]:
        arguments = [self._tensor(port.name, inputs[port.name], port.kinds == {Kind.PROMPT}) for port in self._graph.inputs]
        results = self._evaluator.run(*arguments)
        return {port.name: np.ascontiguousarray(result.cpu().numpy()) for port, result in zip(self._graph.outputs, results, strict=True)}

    def _tensor(self, name: str, array: Array, constant: bool) -> torch.Tensor:
        if self._device == "cpu" or not constant:
            return torch.from_numpy(np.array(array)).to(self._device)
        key = (array.__array_interface__["data"][0], array.shape, array.strides)
        if name not in self._moved or self._moved[name][0] != key:
            self._moved[name] = (key, torch.from_numpy(np.array(array)).to(self._device))
        return self._moved[name][1]
