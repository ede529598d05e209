"""Quantized attention in ONNX: what TensorRT is given says what the operation means. Its kernels are counted in tests/exporter/engines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention as attention

from dexport.errors import Failure
from dexport.exporter.capture import Input
from dexport.exporter.legality import check_onnx_for_tensorrt
from dexport.passes.graph import BATCH, Graph, Kind, run
from dexport.passes.quantization.attention import AttentionValues
from dexport.targets.formats import Backend
from tests.exporter.spellings.attention_graphs import FP8, with_quantized_attention
from tests.exporter.spellings.backends import written
from tests.passes.graphs import example, graph_of

_TOKENS, _KEYS, _HEAD = 5, 7, 16
INPUTS = (
    Input("query", (BATCH, 2, _TOKENS, _HEAD), torch.float32, Kind.LATENT),
    Input("key", (BATCH, 2, _KEYS, _HEAD), torch.float32, Kind.PROMPT),
    Input("bias", (BATCH, 1, 1, _KEYS), torch.float32, Kind.PROMPT),
)


class Every(nn.Module):
    """Each kind of mask."""

    def forward(self, query: torch.Tensor, key: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, ...]:
        value = key.sin()
        return (
            attention(query, key, value),
            attention(query, key, value, attn_mask=bias, scale=0.3),
            attention(query, key, value, attn_mask=bias > -1),
            attention(query, query.cos(), query, is_causal=True),
        )


@pytest.fixture(scope="module")
def graph() -> Graph:
    return graph_of(Every(), INPUTS, [f"out_{index}" for index in range(4)])


def test_fp8_attention_gives_the_meaning(graph: Graph, tmp_path: Path) -> None:
    """ONNX Runtime has no FP8 attention, but it computes Q and DQ."""
    changed, inputs = with_quantized_attention(graph), example(INPUTS, 3)
    path = written(changed, tmp_path, "tensorrt-kit", 20)
    assert check_onnx_for_tensorrt(path, tensorrt=(10, 13), opset_max=20) == []
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    given = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    for array, wanted, exact in zip(given, run(changed, inputs).values(), run(graph, inputs).values(), strict=True):
        torch.testing.assert_close(torch.from_numpy(array), wanted, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(wanted, exact, atol=1e-3)


@pytest.mark.parametrize(
    ("backend", "values", "message"),
    [
        ("openvino", FP8, "attention: expected a form that openvino computes exactly, got operands in e4m3"),
        ("tensorrt-rtx", replace(FP8, probabilities="log2-8"), "got operands in log2-8"),
        ("tensorrt-rtx", replace(FP8, start_tokens=1), "attention that rounds all keys but the first ones"),
    ],
)
def test_others_are_refused(backend: Backend, values: AttentionValues, message: str, graph: Graph, tmp_path: Path) -> None:
    with pytest.raises(Failure, match=message):
        written(with_quantized_attention(graph, values), tmp_path, backend, 20)
