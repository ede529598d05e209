"""int8 GEMMs: every mode, granularity and integer format gives on the processors what the operation means."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dexport.passes.graph import Graph, Weight, run
from tests.exporter.spellings.backends import PROCESSORS, engine_of, onnxruntime_nodes, openvino_nodes, written
from tests.exporter.spellings.quantized_graphs import Form, example_of_forms, graph_of_forms

FORMS = [
    Form(),
    Form(group=-1),
    Form(mode="dynamic"),
    Form(mode="dynamic-centred"),
    Form(mode="table"),
    Form(mode="table", centre=True),
    Form(centre=True),
    Form(activation="int6", scale=0.1),
    Form(activation="int6", mode="dynamic"),
    Form(weight="int6", activation="int6", mode="table"),
    Form(weight="int4", activation="int4", mode="dynamic"),
    *(Form(weight=w) for w in ("int4", "int3", "int2", "e2m1", "e1m2", "e3m0", "e2m3")),
]


@pytest.fixture(scope="module")
def graph() -> Graph:
    return graph_of_forms(FORMS)


@pytest.fixture(scope="module")
def paths(graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {backend: written(graph, tmp_path_factory.mktemp(backend), backend) for backend in PROCESSORS}


def test_results_are_those_of_the_meaning(graph: Graph, paths: dict[str, Path]) -> None:
    inputs = example_of_forms()
    wanted = run(graph, inputs)
    for backend in PROCESSORS:
        given = engine_of(paths[backend], backend)({name: tensor.numpy() for name, tensor in inputs.items()})
        for index, form in enumerate(FORMS):
            result, meaning = torch.from_numpy(given[f"out_{index}"]), wanted[f"out_{index}"]
            torch.testing.assert_close(result, meaning, rtol=1e-4, atol=2e-5, msg=lambda m, f=form, b=backend: f"{b} {f}: {m}")


def test_onnx_runtime_multiplies_integers(paths: dict[str, Path]) -> None:
    nodes = onnxruntime_nodes(paths["onnxruntime-cpu"])
    assert nodes["MatMulIntegerToFloat"] == len(FORMS)
    assert not {"MatMul", "Gemm", "DequantizeLinear", "Transpose"} & set(nodes)


def test_openvino_multiplies_integers(paths: dict[str, Path]) -> None:
    nodes = openvino_nodes(paths["openvino"], example_of_forms())
    assert [precision for layer, _, precision in nodes if layer == "FullyConnected"] == ["i8"] * len(FORMS)


def test_sums_that_overflow_16_bits_are_exact(tmp_path: Path) -> None:
    """The largest codes everywhere: on x86 without VNNI the plain int8 kernels of both backends saturate; the engines avoid it."""
    graph = graph_of_forms([Form()])
    ones = torch.full((64, 128), 127, dtype=torch.int8)
    name = "linears.0.weight_codes"
    largest = Weight(tuple(ones.shape), ones.dtype, lambda: ones, "ones")
    graph = Graph(graph.name, graph.module, graph.inputs, graph.outputs, {**graph.weights, name: largest})
    inputs = {**example_of_forms(), "latent": torch.full((2, 6, 128), 9.0)}
    wanted = run(graph, inputs)["out_0"]
    for backend in PROCESSORS:
        given = engine_of(written(graph, tmp_path, backend), backend)({name: tensor.numpy() for name, tensor in inputs.items()})
        torch.testing.assert_close(torch.from_numpy(given["out_0"]), wanted, rtol=1e-5, atol=1e-5)
