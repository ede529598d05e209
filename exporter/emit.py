"""A graph becomes a component of the bundle: ONNX always, then what the target's backend makes of it."""

from __future__ import annotations

import filecmp
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from dexport.exporter.asked_precision import asked_precisions
from dexport.exporter.engines.jetson import KitComponent, write_kit, write_plugins
from dexport.exporter.engines.tensorrt_rtx import build_engine
from dexport.exporter.external_data import WeightFile
from dexport.exporter.onnx import OnnxFile, onnx_from_graph
from dexport.exporter.options import Size
from dexport.passes.graph import BATCH, STEPS, Dim, Graph
from dexport.runtime.builders.builder import Profile, profiles_to_json
from dexport.runtime.builders.openvino import ir_from_onnx
from dexport.runtime.finalize.precision import asked_to_json
from dexport.runtime.manifest import KIT, Component, Plugin, Port, Variant
from dexport.targets.target import Target

_FOLDER = "graphs"
_ENGINES = "engines"
EVERYTHING = "*"


@dataclass(frozen=True)
class Ranges:
    """Values of the symbolic sizes, one entry per optimization profile: (smallest, usual, largest) rows, and step counts."""

    rows: tuple[tuple[int, int, int], ...]
    steps: tuple[int, int, int]

    def shapes(self, shape: Sequence[Dim], profile: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Smallest, usual and largest shape of a port in a profile."""
        values = {BATCH: self.rows[profile], STEPS: self.steps}
        low, usual, high = (tuple(values[d][i] if isinstance(d, str) else d for d in shape) for i in range(3))
        return low, usual, high


@dataclass
class Emitter:
    """Writes components into the folder of a bundle that is being made; a context manager that closes the weight files.

    Graphs of one component at several sizes share one weight file.

    Attributes:
        kit: leave the engines to `dexport finalize`, also where they could be built here.
        components: what has been written.
        plugins: what a kit needs besides TensorRT; known once it is finished.
    """

    directory: Path
    target: Target
    precision: str
    storage: torch.dtype
    kit: bool = False
    components: dict[str, Component] = field(default_factory=dict)
    plugins: tuple[Plugin, ...] = ()
    _kit: list[KitComponent] = field(default_factory=list)
    _weights: dict[str, WeightFile] = field(default_factory=dict)
    _open: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Emitter:
        (self.directory / _FOLDER).mkdir(exist_ok=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._open.close()

    def add(self, graph: Graph, ranges: Ranges, size: Size | None) -> None:
        """Writes one component for one size (None: any size)."""
        stem = graph.name if size is None else f"{graph.name}-{size[0]}x{size[1]}"
        onnx = self._onnx(graph, stem)
        variant = self._variant(graph, stem, onnx, ranges, size)
        known = self.components.get(graph.name)
        if known is not None:
            variant = self._merged(known.variants[-1], variant)
            inputs, outputs = _common(known.inputs, _ports(graph.inputs)), _common(known.outputs, _ports(graph.outputs))
            self.components[graph.name] = replace(known, inputs=inputs, outputs=outputs, variants=(*known.variants, variant))
            return
        islands = self._islands(graph)
        self.components[graph.name] = Component(
            inputs=_ports(graph.inputs),
            outputs=_ports(graph.outputs),
            variants=(variant,),
            parameters=graph.parameter_count(),
            weight_bytes=onnx.weight_bytes,
            precision="fp32" if islands == (EVERYTHING,) else self.precision,
            islands=islands,
        )

    def _islands(self, graph: Graph) -> tuple[str, ...]:
        """What stays in fp32 where the build is narrower: names of weights, or a star for the whole component."""
        weights = {name: w for name, w in graph.used_weights().items() if len(w.shape) >= 2}
        wide = sorted(name.removeprefix("model.") for name, w in weights.items() if w.dtype is torch.float32)
        if self._stored() is not torch.float32 or self.precision == "fp32" or not weights:
            return ()
        return (EVERYTHING,) if len(wide) == len(weights) else tuple(wide)

    @property
    def backend(self) -> str:
        """What the bundle will say: the target's backend, of a kit with "-kit" behind it."""
        return f"{self.target.backend}{KIT}" if self.kit and not self.target.backend.endswith(KIT) else self.target.backend

    def finish(self) -> None:
        """Closes the weight files and writes what needs all components: the build kit of a Jetson."""
        self._open.close()
        if self.target.backend == "tensorrt-kit":
            self.plugins = write_plugins(self.directory, self._kit, self.target)
            write_kit(self.directory, self._kit, self.target, self.plugins)

    def _onnx(self, graph: Graph, stem: str) -> OnnxFile:
        if graph.name not in self._weights:
            path = self.directory / _FOLDER / f"{graph.name}.data"
            self._weights[graph.name] = self._open.enter_context(WeightFile(path))
        weights = self._weights[graph.name]
        path = self.directory / _FOLDER / f"{stem}.onnx"
        written = onnx_from_graph(
            graph, path, opset=self.target.onnx_opset, weights=weights, storage=self._stored(), backend=self.target.backend
        )
        weights.flush()
        return written

    def _stored(self) -> torch.dtype:
        return self.storage if self.target.backend in ("openvino", "onnxruntime-cpu") else torch.float32

    def _variant(self, graph: Graph, stem: str, onnx: OnnxFile, ranges: Ranges, size: Size | None) -> Variant:
        match self.backend:
            case "openvino":
                ir = ir_from_onnx(onnx.path, self._engine_path(f"{stem}.xml"))
                self._forget_onnx(graph.name, onnx)
                parts = (self._relative(ir.xml), self._relative(ir.bin))
                return Variant(size=size, artifact=parts[0], format="openvino", files=parts)
            case "tensorrt-rtx":
                assert self.target.sm is not None
                plan = self._engine_path(f"{stem}.plan")
                report = build_engine(onnx.path, plan, sm=(self.target.sm,), profiles=_profiles(graph, ranges))
                self._forget_onnx(graph.name, onnx)
                file, kernels = self._relative(plan), report.kernels.to_dict()
                return Variant(size=size, artifact=file, format="tensorrt-rtx", files=(file,), native=True, kernels=kernels)
            case backend:
                files = tuple(self._relative(p) for p in (onnx.path, onnx.weights) if p is not None)
                if not backend.endswith(KIT):
                    return Variant(size=size, artifact=files[0], format="onnx", files=files)
                profiles = _profiles(graph, ranges)
                self._kit.append(KitComponent(stem, files[0], tuple(profiles), onnx.weight_bytes, files[1:]))
                asked = asked_to_json(asked_precisions(onnx.path))
                return Variant(
                    size=size, artifact=files[0], format=backend, files=files, kernels=asked, profiles=profiles_to_json(profiles)
                )

    def _engine_path(self, name: str) -> Path:
        (self.directory / _ENGINES).mkdir(exist_ok=True)
        return self.directory / _ENGINES / name

    def _forget_onnx(self, name: str, onnx: OnnxFile) -> None:
        """Removes the intermediate ONNX once the engine holds the weights."""
        self._weights.pop(name).close()
        for path in (onnx.path, onnx.weights):
            if path is not None:
                path.unlink()

    def _merged(self, known: Variant, new: Variant) -> Variant:
        """Uses the files of another size where they are the same byte by byte (what a prelude computes seldom depends on the size)."""
        pairs = list(zip(known.files, new.files))
        if len(known.files) != len(new.files) or any(
            a == b or not filecmp.cmp(self.directory / a, self.directory / b, shallow=False) for a, b in pairs
        ):
            return new
        for _, path in pairs:
            (self.directory / path).unlink()
        return replace(known, size=new.size)

    def _relative(self, path: Path) -> str:
        return os.path.relpath(path, self.directory).replace(os.sep, "/")


def _ports(ports: Sequence[Any]) -> dict[str, Port]:
    return {p.name: Port(dtype=str(p.dtype).removeprefix("torch."), shape=tuple(p.shape)) for p in ports}


def _common(known: Mapping[str, Port], new: Mapping[str, Port]) -> dict[str, Port]:
    """Ports that hold for two sizes: dimensions in which they differ become symbols.

    Ports that only one of them has stay, so that the check of the other one's program names them.
    """
    merged = {**known, **new}
    for name in known.keys() & new.keys():
        axes = enumerate(zip(known[name].shape, new[name].shape, strict=True))
        merged[name] = replace(new[name], shape=tuple(a if a == b else f"{name.lower()}_axis{i}" for i, (a, b) in axes))
    return merged


def _profiles(graph: Graph, ranges: Ranges) -> list[Profile]:
    symbolic = [p for p in graph.inputs if any(isinstance(d, str) for d in p.shape)]
    return [{p.name: ranges.shapes(p.shape, i) for p in symbolic} for i in range(len(ranges.rows))] if symbolic else []
