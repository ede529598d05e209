"""What every family's tests check: captured equals diffusers, split equals whole, ONNX Runtime equals both."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from torch import nn

from dexport.exporter.capture import Input
from dexport.exporter.components import load_component
from dexport.exporter.external_data import WeightFile
from dexport.exporter.onnx import onnx_from_graph
from dexport.exporter.pipelines import open_directory
from dexport.exporter.pipelines.family import Component, Pipeline
from dexport.passes.graph import BATCH, Graph, materialise, run
from dexport.passes.hoist import Hoisted, hoist

Tensors = Mapping[str, torch.Tensor]
_OPSET = 20


@dataclass(frozen=True)
class Captured:
    """A tiny pipeline: what diffusers loads, what the adapter opens, its components and their graphs, the split denoiser."""

    original: Any
    pipeline: Pipeline
    components: Mapping[str, Component]
    graphs: Mapping[str, Graph]
    split: Hoisted

    def model(self, name: str) -> nn.Module:
        """The diffusers model behind a component."""
        model = getattr(self.original, self.components[name].folder)
        assert isinstance(model, nn.Module)
        return model


def captured(directory: Path) -> Captured:
    """Opens and captures a pipeline directory at its default size in fp32."""
    from diffusers import DiffusionPipeline

    index = json.loads((directory / "model_index.json").read_text())
    absent = {name: None for name, entry in index.items() if isinstance(entry, list) and entry[0] is None}
    original = DiffusionPipeline.from_pretrained(directory, dtype=torch.float32, **absent)
    original.set_progress_bar_config(disable=True)
    pipeline = open_directory(directory)
    components = {c.name: c for c in pipeline.components(pipeline.default_size, torch.float32)}
    graphs = {name: materialise(load_component(directory, c, torch.float32)) for name, c in components.items()}
    return Captured(original, pipeline, components, graphs, hoist(graphs["denoiser"]))


def example(component: Component, batch: int) -> dict[str, torch.Tensor]:
    """Random inputs of a component, from a seed."""
    generator = torch.Generator().manual_seed(batch)
    return {item.name: _example(item, batch, generator) for item in component.inputs}


def _example(item: Input, batch: int, generator: torch.Generator) -> torch.Tensor:
    shape = [batch if d == BATCH else int(d) for d in item.shape]
    if item.name == "timestep":
        return torch.tensor([601.0])
    if item.name == "given":
        return torch.arange(batch, dtype=torch.float32) % 2
    if item.dtype is torch.int64:
        return torch.randint(0, 80, shape, generator=generator)
    return torch.randn(shape, generator=generator, dtype=item.dtype)


def distance(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest difference relative to the largest value; of pixels, which may round either way, what is more than one level."""
    assert got.shape == wanted.shape and got.dtype == wanted.dtype
    difference = float((got.float() - wanted.float()).abs().max())
    if got.dtype is torch.uint8:
        return max(0.0, difference - 1) / 255
    return difference / max(float(wanted.abs().max()), 1e-12)


def check_component(case: Captured, name: str) -> None:
    """The graph of a component gives what the wrapped diffusers model gives."""
    component, graph = case.components[name], case.graphs[name]
    reference = component.wrap(case.model(name))
    for batch in (1, 2, 3):
        inputs = example(component, batch)
        with torch.no_grad():
            wanted = reference(*inputs.values())
        got = run(graph, inputs)
        for output, tensor in zip(component.outputs, wanted if isinstance(wanted, tuple) else (wanted,), strict=True):
            assert distance(got[output], tensor) < 1e-5, (name, output, batch)


def run_split(split: Hoisted, inputs: Tensors, timesteps: torch.Tensor, step: int) -> dict[str, torch.Tensor]:
    """The split denoiser at one of several timesteps, as a runtime would run it."""
    loop_inputs = _loop_inputs(split, inputs, timesteps, step)
    return run(split.loop, loop_inputs)


def _loop_inputs(split: Hoisted, inputs: Tensors, timesteps: torch.Tensor, step: int) -> dict[str, torch.Tensor]:
    feed = {**inputs, "timestep": timesteps}
    values: dict[str, torch.Tensor] = dict(inputs)
    if split.prompt is not None:
        values |= run(split.prompt, feed)
    if split.table is not None:
        values |= {name: table[step : step + 1] for name, table in run(split.table, feed).items()}
    if split.schedule is not None:
        batch = inputs["latent"].shape[0]
        values |= {name: packed[step * batch : (step + 1) * batch] for name, packed in run(split.schedule, feed).items()}
    return {port.name: values[port.name] for port in split.loop.inputs}


def check_split(case: Captured) -> None:
    """The split denoiser gives what the whole one gives, at every step and batch."""
    timesteps = torch.tensor([901.0, 400.0, 7.0])
    for batch in (1, 2, 3):
        inputs = example(case.components["denoiser"], batch)
        for step in range(3):
            whole = run(case.graphs["denoiser"], {**inputs, "timestep": timesteps[step : step + 1]})
            parts = run_split(case.split, inputs, timesteps, step)
            assert distance(parts["model_output"], whole["model_output"]) < 1e-5, (batch, step)


def check_onnx(case: Captured, folder: Path) -> None:
    """Every piece passes onnx.checker and runs in ONNX Runtime as it runs in PyTorch."""
    for graph, inputs in _pieces(case):
        path = folder / f"{graph.name}.onnx"
        with WeightFile(folder / f"{graph.name}.bin") as weights:
            onnx_from_graph(graph, path, opset=_OPSET, weights=weights)
        onnx.checker.check_model(str(path))
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        feed = {port.name: inputs[port.name].numpy() for port in graph.inputs}
        wanted = run(graph, inputs)
        names = [port.name for port in graph.outputs]
        for name, array in zip(names, session.run(names, feed), strict=True):
            assert distance(torch.from_numpy(array), wanted[name]) < 1e-4, (graph.name, name)


def _pieces(case: Captured) -> Iterator[tuple[Graph, Tensors]]:
    for name, component in case.components.items():
        if name != "denoiser":
            yield case.graphs[name], example(component, 3)
    inputs = example(case.components["denoiser"], 3)
    timesteps = torch.tensor([901.0, 400.0])
    for graph in (case.split.prompt, case.split.table, case.split.schedule):
        if graph is not None:
            yield graph, {**inputs, "timestep": timesteps}
    yield case.split.loop, _loop_inputs(case.split, inputs, timesteps, 1)
