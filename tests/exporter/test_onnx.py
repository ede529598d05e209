"""ONNX files: the interface of the graph, every weight once, and memory that does not grow with the model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from dexport.errors import Failure
from dexport.exporter.external_data import WeightFile
from dexport.exporter.onnx import OnnxFile, onnx_from_graph
from dexport.passes.graph import BATCH, Graph, Weight, run
from tests.passes.graphs import LATENT, example, graph_of

_ROOT = Path(__file__).parents[2]


class Tied(nn.Module):
    """Two layers with one weight, and a table that is computed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        table = torch.arange(48.0).reshape(6, 8).cos()
        return self.second(self.first(latent) + table)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def tied() -> Graph:
    """Its weights say that they are one stored tensor."""
    graph = graph_of(Tied())
    tensor = graph.weights["first.weight"].load()
    shared = Weight((8, 8), torch.float32, lambda: tensor, "model.safetensors:shared")
    return Graph(graph.name, graph.module, graph.inputs, graph.outputs, {**graph.weights, "first.weight": shared, "second.weight": shared})


def _written(graph: Graph, folder: Path, storage: torch.dtype = torch.float32) -> OnnxFile:
    with WeightFile(folder / "model.data") as weights:
        return onnx_from_graph(graph, folder / "model.onnx", opset=20, weights=weights, storage=storage)


def _result(file: OnnxFile, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    session = onnxruntime.InferenceSession(str(file.path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["out"], {name: tensor.numpy() for name, tensor in inputs.items()})[0])


def test_a_file_has_the_interface_of_its_graph(tied: Graph, tmp_path: Path) -> None:
    file = _written(tied, tmp_path)
    model = onnx.load(file.path, load_external_data=False)
    entering, leaving = model.graph.input[0], model.graph.output[0]
    assert (entering.name, leaving.name) == ("latent", "out")
    assert [d.dim_param or d.dim_value for d in entering.type.tensor_type.shape.dim] == [BATCH, 6, 8]
    read = {name for node in model.graph.node for name in node.input}
    assert {initializer.name for initializer in model.graph.initializer} <= read, "constants that nothing reads are left out"
    assert (file.inputs, file.outputs, file.weights) == (tied.inputs, tied.outputs, tmp_path / "model.data")
    for batch in (1, 3):
        inputs = example([LATENT], batch)
        torch.testing.assert_close(_result(file, inputs), run(tied, inputs)["out"], rtol=1e-5, atol=1e-5)


def test_a_shared_weight_is_stored_once_and_transposed(tied: Graph, tmp_path: Path) -> None:
    file = _written(tied, tmp_path)
    model = onnx.load(file.path, load_external_data=False)
    places = {}
    for initializer in model.graph.initializer:
        if list(initializer.dims) == [8, 8]:
            where = {entry.key: entry.value for entry in initializer.external_data}
            assert where["location"] == "model.data"
            places[int(where["offset"])] = int(where["length"])
    assert list(places.values()) == [8 * 8 * 4]
    offset = next(iter(places))
    stored = np.frombuffer((tmp_path / "model.data").read_bytes()[offset : offset + 256], np.float32).reshape(8, 8)
    np.testing.assert_array_equal(stored.T, tied.weights["first.weight"].load().numpy())
    assert "Transpose" not in {node.op_type for node in model.graph.node}


@pytest.mark.parametrize(("storage", "tolerance"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_narrow_storage_halves_matrices_and_computes_in_fp32(tied: Graph, tmp_path: Path, storage: torch.dtype, tolerance: float) -> None:
    file = _written(tied, tmp_path, storage)
    model = onnx.load(file.path, load_external_data=False)
    types = {tuple(i.dims): i.data_type for i in model.graph.initializer}
    narrow = onnx.TensorProto.FLOAT16 if storage is torch.float16 else onnx.TensorProto.BFLOAT16
    assert types[8, 8] == narrow and types[8,] == onnx.TensorProto.FLOAT
    inputs = example([LATENT], 2)
    torch.testing.assert_close(_result(file, inputs), run(tied, inputs)["out"], rtol=tolerance, atol=10 * tolerance)


class Averages(nn.Module):
    """Reductions, slices and shapes, whose axes the exporter computes in the graph."""

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        centred = nn.functional.layer_norm(latent - latent.mean((1, 2), keepdim=True), (8,))
        return centred.reshape(latent.shape[0], 2, -1)[:, :, 1:].pow(2).mean(-1)


def test_axes_and_shapes_are_constants(tmp_path: Path) -> None:
    """TensorRT's parser takes no computed ones."""
    model = onnx.load(_written(graph_of(Averages()), tmp_path).path)
    constants = {i.name for i in model.graph.initializer} | {n.output[0] for n in model.graph.node if n.op_type == "Constant"}
    wanted = {"ReduceMean", "Reshape", "Slice"}
    found = [node for node in model.graph.node if node.op_type in wanted]
    assert {node.op_type for node in found} == wanted
    assert all(set(node.input[1:]) <= constants for node in found)


class Fourier(nn.Module):
    """An operation without an ONNX form."""

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        return torch.linalg.svdvals(latent)  # type: ignore[no-any-return]


def test_an_operation_without_a_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        Failure, match=r"model: expected a graph with an ONNX form at opset 20, got .*; run with --debug to see the operation"
    ):
        _written(graph_of(Fourier()), tmp_path)


def test_a_weight_that_is_not_finite_is_named(tied: Graph, tmp_path: Path) -> None:
    bad = Weight((8, 8), torch.float32, lambda: torch.full((8, 8), float("nan")), "model.safetensors:shared")
    graph = Graph(tied.name, tied.module, tied.inputs, tied.outputs, {**tied.weights, "first.weight": bad, "second.weight": bad})
    with pytest.raises(Failure, match=r"model.safetensors:shared.*: expected finite weights, got 64 NaN or Inf values"):
        _written(graph, tmp_path)


_STREAMED = """
import resource, sys
from pathlib import Path
import torch
from torch import nn
from dexport.exporter.capture import Input
from dexport.exporter.components import load_component
from dexport.exporter.external_data import WeightFile
from dexport.exporter.onnx import onnx_from_graph
from dexport.exporter.pipelines.family import Component
from dexport.passes.graph import BATCH, Kind

class Wrapped(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model
    def forward(self, x):
        return self.model(x)

def write(width):
    folder = Path(sys.argv[1]) / str(width)
    inputs = (Input("x", (BATCH, width), torch.float32, Kind.LATENT),)
    model = lambda: nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(4)))
    graph = load_component(folder, Component("m", "model", model, Wrapped, inputs, ("y",)), torch.float32)
    with WeightFile(folder / "m.data") as weights:
        onnx_from_graph(graph, folder / "m.onnx", opset=20, weights=weights)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

before = write(64)
print(write(4096) - before)
"""


def test_memory_is_that_of_one_weight_not_of_the_model(tmp_path: Path) -> None:
    """Four layers of 64 MiB: reading one takes twice its size for a moment (stored and transposed) and a quarter to look for NaN."""
    layer = 4096 * 4096 * 4
    for width in (64, 4096):
        _zeros(tmp_path / str(width) / "model", width)
    run = subprocess.run([sys.executable, "-c", _STREAMED, str(tmp_path)], capture_output=True, text=True, cwd=_ROOT, check=False)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "4096" / "m.data").stat().st_size == 4 * layer
    assert int(run.stdout.split()[-1]) < 2.75 * layer


def _zeros(folder: Path, width: int) -> None:
    """A sparse safetensors file of four square matrices of zeros."""
    folder.mkdir(parents=True)
    size = width * width * 4
    entries = [f'"{i}.weight":{{"dtype":"F32","shape":[{width},{width}],"data_offsets":[{i * size},{(i + 1) * size}]}}' for i in range(4)]
    header = ("{" + ",".join(entries) + "}").encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 4 * size)
