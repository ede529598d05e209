"""Quantized convolutions give on the processors what they mean, in int8 kernels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from dexport.exporter.capture import Input
from dexport.passes.graph import BATCH, Graph, Kind, run
from tests.exporter.spellings.backends import PROCESSORS, engine_of, onnxruntime_nodes, openvino_nodes, written
from tests.exporter.spellings.quantized_graphs import Form, quantized
from tests.passes.graphs import graph_of

FORMS = [
    Form(),
    Form(group=-1, activation="int6", scale=0.1),
    Form(mode="dynamic"),
    Form(weight="int4"),
    Form(mode="none"),
]


class Convolutions(nn.Module):
    """One per form, with and without bias, stride, padding, dilation and groups."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        options: list[dict[str, int | bool]] = [{"padding": 1}, {"stride": 2, "bias": False}, {"dilation": 2}, {"groups": 2}, {}]
        self.layers = nn.ModuleList(nn.Conv2d(8, 16, 3, **o) for o in options)  # type: ignore[arg-type]

    def forward(self, latent: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(layer(latent) for layer in self.layers)


@pytest.fixture(scope="module")
def graph() -> Graph:
    inputs = (Input("latent", (BATCH, 8, 9, 9), torch.float32, Kind.LATENT),)
    captured = graph_of(Convolutions(), inputs, [f"out_{i}" for i in range(len(FORMS))])
    return quantized(captured, {f"layers.{i}.weight": form for i, form in enumerate(FORMS)})


@pytest.mark.parametrize("backend", PROCESSORS)
def test_results_are_those_of_the_meaning(backend: str, graph: Graph, tmp_path: Path) -> None:
    torch.manual_seed(1)
    inputs = {"latent": torch.randn(2, 8, 9, 9)}
    path = written(graph, tmp_path, backend)  # type: ignore[arg-type]
    given = engine_of(path, backend)({"latent": inputs["latent"].numpy()})  # type: ignore[arg-type]
    for name, meaning in run(graph, inputs).items():
        torch.testing.assert_close(torch.from_numpy(given[name]), meaning, rtol=1e-4, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")
    if backend == "onnxruntime-cpu":
        nodes = onnxruntime_nodes(path)
        assert nodes["ConvInteger"] == len(FORMS) - 1
    else:
        convolutions = [(kernel, precision) for layer, kernel, precision in openvino_nodes(path, inputs) if layer == "Convolution"]
        # The names of primitives end in what they multiply: "jit_avx2_I8", whatever the instruction set.
        assert [kernel.rpartition("_")[2] for kernel, _ in convolutions].count("I8") == sum(form.mode != "none" for form in FORMS)
        assert len(convolutions) == len(FORMS)
        assert all(kernel.endswith("_I8") == (precision in ("i8", "u8")) for kernel, precision in convolutions), convolutions
