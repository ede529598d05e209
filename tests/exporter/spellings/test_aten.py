"""Every operation that is spelt here gives in ONNX Runtime what it gives in PyTorch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention as attention
from torch.nn.functional import silu

from dexport.errors import Failure
from dexport.exporter.capture import Input
from dexport.exporter.external_data import WeightFile
from dexport.exporter.onnx import onnx_from_graph
from dexport.exporter.spellings.aten import translations
from dexport.passes.graph import BATCH, Graph, Kind
from tests.passes.graphs import graph_of

_TOKENS, _KEYS = 5, 7
INPUTS = (
    Input("query", (BATCH, 2, _TOKENS, 4), torch.float32, Kind.LATENT),
    Input("key", (BATCH, 2, _KEYS, 4), torch.float32, Kind.LATENT),
    Input("mask", (BATCH, 1, 1, _KEYS), torch.bool, Kind.LATENT),
    Input("bias", (BATCH, 2, _TOKENS, _KEYS), torch.float32, Kind.LATENT),
)


class Everything(nn.Module):
    """Each spelling in each of its forms, as one output each."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.biased, self.plain = nn.Linear(4, 3), nn.Linear(4, 6, bias=False)

    def forward(self, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, ...]:
        value = key.sin()
        return (
            attention(query, key, value),
            attention(query, key, value, scale=0.3),
            attention(query, key, value, attn_mask=mask),
            attention(query, key, value, attn_mask=bias),
            attention(query, key, value, is_causal=True),
            attention(key, query, query.cos(), is_causal=True),
            attention(query.half(), key.half(), value.half(), attn_mask=mask).float(),
            self.biased(query),
            self.plain(query[:, 0]),
            silu(query),
            query[..., 1:],
            query[:, :, :-1],
            query[:, :, 0:4:2, -3:-1],
        )


@pytest.fixture(scope="module")
def graph() -> Graph:
    return graph_of(Everything(), INPUTS, [f"out_{index}" for index in range(13)])


@pytest.fixture(scope="module")
def written(graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx")
    with WeightFile(folder / "model.data") as weights:
        return onnx_from_graph(graph, folder / "model.onnx", opset=20, weights=weights).path


@pytest.mark.parametrize("batch", [1, 3])
def test_onnx_runtime_computes_the_same(written: Path, batch: int) -> None:
    torch.manual_seed(batch)
    mask = torch.rand(batch, 1, 1, _KEYS) > 0.4
    mask[..., 0] = True  # a row without any key has no meaning
    shapes = ((batch, 2, _TOKENS, 4), (batch, 2, _KEYS, 4), (batch, 2, _TOKENS, _KEYS))
    query, key, bias = (torch.randn(shape) for shape in shapes)
    wanted = Everything()(query, key, mask, bias)
    session = onnxruntime.InferenceSession(str(written), providers=["CPUExecutionProvider"])
    given = session.run(None, {"query": query.numpy(), "key": key.numpy(), "mask": mask.numpy(), "bias": bias.numpy()})
    for index, (array, tensor) in enumerate(zip(given, wanted, strict=True)):
        np.testing.assert_allclose(array, tensor.detach().numpy(), rtol=1e-5, atol=2e-3 if index == 6 else 1e-5, err_msg=str(index))


def test_the_forms_are_those_that_compilers_know(written: Path) -> None:
    model = onnx.load(written, load_external_data=False)
    onnx.checker.check_model(str(written))
    count = Counter(node.op_type for node in model.graph.node)
    assert (count["Softmax"], count["MatMul"], count["Gemm"], count["Sigmoid"]) == (7, 7 + 4 + 2, 0, 1)  # four share query x key
    assert count["Slice"] == 4 or count["Slice"] == 5  # query[:, 0] is a Gather
    turned = [node for node in model.graph.node if node.op_type == "Transpose"]
    assert len(turned) <= 7, "weights are stored as MatMul wants them: only keys are transposed"
    assert set(translations()) == {
        torch.ops.aten.linear.default,
        torch.ops.aten.scaled_dot_product_attention.default,
        torch.ops.aten.slice.Tensor,
        torch.ops.aten.silu.default,
        torch.ops.dexport.quantized_attention.default,
        torch.ops.dexport.quantized_linear.default,
        torch.ops.dexport.quantized_conv.default,
    }


class Grouped(nn.Module):
    """Attention whose keys have fewer heads than the queries."""

    def forward(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return attention(query, key[:, :1], key[:, :1], enable_gqa=True)


def test_grouped_queries_are_refused(tmp_path: Path) -> None:
    graph = graph_of(Grouped(), INPUTS[:2])
    with (
        WeightFile(tmp_path / "w") as weights,
        pytest.raises(Failure, match=r"model: expected a graph with an ONNX form at opset 20, got "),
    ):
        onnx_from_graph(graph, tmp_path / "m.onnx", opset=20, weights=weights)
