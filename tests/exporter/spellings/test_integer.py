"""int8 GEMMs: every mode, granularity and integer format gives on the processors what the operation means."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from dexport.exporter.capture import Input
from dexport.passes.graph import BATCH, Graph, Kind, Weight, run
from dexport.targets.formats import Backend
from tests.exporter.spellings.backends import PROCESSORS, onnxruntime_nodes, openvino_nodes, result, written
from tests.exporter.spellings.quantized_graphs import Form, quantized, table_of_scales
from tests.passes.graphs import graph_of

INPUTS = (
    Input("latent", (BATCH, 6, 128), torch.float32, Kind.LATENT),
    Input("scales", (1, 2), torch.float32, Kind.STEP),
)


class TwoLinears(nn.Module):
    """One with a bias and one without."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(128, 96), nn.Linear(96, 64, bias=False)

    def forward(self, latent: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        return self.second(torch.nn.functional.gelu(self.first(latent))) + 0 * scales.sum()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def graph() -> Graph:
    return graph_of(TwoLinears(), INPUTS)


@pytest.fixture(scope="module")
def inputs() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    latent = torch.randn(2, 6, 128)
    latent[0, 0] = 0  # a row without any range
    return {"latent": latent, "scales": torch.tensor([[0.03, 0.011]])}


FORMS = [
    Form(),
    Form(group=-1),
    Form(mode="dynamic"),
    Form(mode="dynamic-centred"),
    Form(mode="table"),
    Form(centre=True),
    Form(activation="int6", scale=0.1),
    Form(activation="int6", mode="dynamic"),
    Form(weight="int6", activation="int6", mode="table"),
    *(Form(weight=w) for w in ("int4", "int3", "int2", "e2m1", "e1m2", "e3m0", "e2m3")),
]


@pytest.mark.parametrize("backend", PROCESSORS)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_results_are_those_of_the_meaning(
    form: Form, backend: Backend, graph: Graph, inputs: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    low = quantized(graph, form, table_of_scales("scales") if form.mode == "table" else None)
    wanted = run(low, inputs)["out"]
    given = result(written(low, tmp_path, backend), backend, inputs)
    # A sum of products in another order may move a number over the next layer's rounding threshold: one step of its grid.
    assert float((given - wanted).abs().max() / wanted.abs().max()) < 5e-3
    assert float((given - wanted).norm() / wanted.norm()) < 1e-3


@pytest.mark.parametrize("form", [Form(), Form(mode="dynamic"), Form(mode="table"), Form(weight="int4")], ids=str)
def test_onnx_runtime_multiplies_integers(form: Form, graph: Graph, tmp_path: Path) -> None:
    low = quantized(graph, form, table_of_scales("scales") if form.mode == "table" else None)
    nodes = onnxruntime_nodes(written(low, tmp_path, "onnxruntime-cpu"))
    assert nodes["MatMulIntegerToFloat"] == 2
    assert not {"MatMul", "Gemm", "DequantizeLinear", "Transpose"} & set(nodes)


@pytest.mark.parametrize("form", [Form(), Form(mode="dynamic"), Form(mode="table"), Form(weight="int4")], ids=str)
def test_openvino_multiplies_integers(form: Form, graph: Graph, inputs: dict[str, torch.Tensor], tmp_path: Path) -> None:
    low = quantized(graph, form, table_of_scales("scales") if form.mode == "table" else None)
    nodes = openvino_nodes(written(low, tmp_path, "openvino"), inputs)
    products = [precision for layer, _, precision in nodes if layer == "FullyConnected"]
    assert products == ["i8", "i8"]


def test_sums_that_overflow_16_bits_are_exact(graph: Graph, inputs: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """The largest codes everywhere: on x86 without VNNI the plain int8 kernels of both backends saturate; the engines avoid it."""
    ones = torch.ones(96, 128)
    weights = {**graph.weights, "first.weight": Weight((96, 128), torch.float32, lambda: ones, "ones")}
    low = quantized(Graph(graph.name, graph.module, graph.inputs, graph.outputs, weights), Form())
    many = {**inputs, "latent": torch.full((2, 6, 128), 9.0)}
    wanted = run(low, many)["out"]
    for backend in PROCESSORS:
        torch.testing.assert_close(result(written(low, tmp_path, backend), backend, many), wanted, rtol=1e-5, atol=1e-5)
