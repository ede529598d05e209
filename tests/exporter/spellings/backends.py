"""Runs an ONNX file on the processor backends as bundles do, and tells which kernels they chose."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

from dexport.exporter.external_data import WeightFile
from dexport.exporter.onnx import onnx_from_graph
from dexport.passes.graph import Graph
from dexport.runtime.backends.onnxruntime import OnnxRuntimeEngine, session_entries
from dexport.runtime.backends.openvino import OpenVinoEngine
from dexport.runtime.builders.openvino import ir_from_onnx
from dexport.targets.formats import Backend

PROCESSORS: tuple[Backend, ...] = ("onnxruntime-cpu", "openvino")


def written(graph: Graph, folder: Path, backend: Backend, opset: int = 23) -> Path:
    """The ONNX file of a graph in a backend's form."""
    with WeightFile(folder / f"{backend}.data") as weights:
        return onnx_from_graph(graph, folder / f"{backend}.onnx", opset=opset, weights=weights, backend=backend).path


def engine_of(path: Path, backend: Backend) -> Any:
    """The runtime's engine for an ONNX file."""
    if backend == "onnxruntime-cpu":
        return OnnxRuntimeEngine(path, backend, "model")
    files = ir_from_onnx(path, path.with_suffix(".xml"))
    return OpenVinoEngine(files.xml.read_bytes(), np.fromfile(files.bin, np.uint8), "fp32", None, "model")


def result(path: Path, backend: Backend, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The output "out"."""
    outputs = engine_of(path, backend)({name: tensor.numpy() for name, tensor in inputs.items()})
    return torch.from_numpy(outputs["out"])


def onnxruntime_nodes(path: Path) -> Counter[str]:
    """Operators of the model as ONNX Runtime runs it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    for key, value in session_entries(path).items():
        options.add_session_config_entry(key, value)
    options.optimized_model_filepath = str(path.with_name("optimized.onnx"))
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


def openvino_nodes(path: Path, inputs: dict[str, torch.Tensor], **properties: Any) -> list[tuple[str, str, str]]:
    """(layer, kernel, precision) of the model as OpenVINO's CPU plugin runs it, constants and ports left out."""
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    model.reshape({name: list(tensor.shape) for name, tensor in inputs.items()})
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", **properties})
    found = []
    for node in compiled.get_runtime_model().get_ordered_ops():
        info = node.get_rt_info()
        layer, kernel, precision = (
            str(info[k].astype(str)) if k in info else "" for k in ("layerType", "primitiveType", "runtimePrecision")
        )
        if layer not in ("Input", "Output", "Const", "Constant"):
            found.append((layer, kernel, precision))
    return found
