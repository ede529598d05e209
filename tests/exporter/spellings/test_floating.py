"""FP8 and NVFP4: what TensorRT is given says what the operation means. Its kernels are counted in tests/exporter/engines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from dexport.passes.graph import run
from dexport.plugins.quantized_linear.reference import dequantized
from tests.exporter.spellings.backends import written
from tests.exporter.spellings.quantized_graphs import Form, example_of_forms, graph_of_forms

FP8 = [Form(weight="e4m3", activation="e4m3", group=g, mode=m) for g, m in ((-1, "static"), (0, "table"), (0, "dynamic"))]
NVFP4 = Form(weight="e2m1", group=16, activation="e2m1", mode="dynamic", block=16, micro="nvfp4", scale=0.002)


def test_float8_in_onnx_runtime_gives_the_meaning(tmp_path: Path) -> None:
    """ONNX Runtime has no float8 GEMM, but it computes Q and DQ."""
    graph = graph_of_forms(FP8)
    path = written(graph, tmp_path, "tensorrt-rtx")
    inputs = example_of_forms()
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    given = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    for array, wanted in zip(given, run(graph, inputs).values(), strict=True):
        torch.testing.assert_close(torch.from_numpy(array), wanted, rtol=1e-4, atol=2e-5)


def test_nvfp4_weights_are_stored_in_two_levels(tmp_path: Path) -> None:
    graph = graph_of_forms([NVFP4])
    path = written(graph, tmp_path, "tensorrt-rtx")
    model = onnx.load(path)
    stored = {i.name.rpartition(".")[2]: i for i in model.graph.initializer}
    codes, fine, coarse = (numpy_helper.to_array(stored[key]).astype(np.float32) for key in ("codes", "fine", "coarse"))
    assert stored["codes"].data_type == onnx.TensorProto.FLOAT4E2M1 and stored["fine"].data_type == onnx.TensorProto.FLOAT8E4M3FN
    real = codes * np.repeat(fine * coarse, 16, axis=0)
    name = "linears.0.weight"
    wanted = dequantized(*(graph.weights[f"{name}_{k}"].load() for k in ("codes", "scale", "global")), "e2m1")
    np.testing.assert_allclose(real.T, wanted.numpy(), rtol=1e-6)
    (node,) = [n for n in model.graph.node if n.op_type == "TRT_FP4DynamicQuantize"]
    assert numpy_helper.to_array(next(i for i in model.graph.initializer if i.name == node.input[1])) == pytest.approx(0.002)
