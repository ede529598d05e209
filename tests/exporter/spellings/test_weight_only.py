"""Weights alone: every format and block gives on the processors what the operation means, in the bytes that its bits promise."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from dexport.passes.graph import Graph, run
from dexport.runtime.builders.openvino import ir_from_onnx
from tests.exporter.spellings.backends import PROCESSORS, engine_of, onnxruntime_nodes, openvino_nodes, written
from tests.exporter.spellings.quantized_graphs import INPUTS, OUTPUTS, Form, example_of_forms, graph_of_forms

FORMS = [
    *(Form(weight="int4", group=g, mode="none") for g in (0, 32, 64)),
    Form(mode="none"),
    Form(group=64, mode="none"),
    *(Form(weight=w, group=64, mode="none") for w in ("int6", "int3", "int2", "e1m2", "e2m1", "e4m3")),
    *(Form(weight=w, mode="none") for w in ("e1m2", "e2m1", "e4m3", "e5m2")),
]
BLOCKS = Form(weight="int4", group=64, mode="dynamic", block=64)


@pytest.fixture(scope="module")
def graphs() -> dict[str, Graph]:
    both = graph_of_forms(FORMS)
    return {"onnxruntime-cpu": graph_of_forms([*FORMS, BLOCKS, Form(weight="e3m0", mode="none")]), "openvino": both}


@pytest.fixture(scope="module")
def paths(graphs: dict[str, Graph], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {backend: written(graphs[backend], tmp_path_factory.mktemp(backend), backend) for backend in PROCESSORS}


@pytest.mark.parametrize("backend", PROCESSORS)
def test_results_are_those_of_the_meaning(backend: str, graphs: dict[str, Graph], paths: dict[str, Path]) -> None:
    inputs = example_of_forms()
    wanted = run(graphs[backend], inputs)
    given = engine_of(paths[backend], backend)({name: tensor.numpy() for name, tensor in inputs.items()})
    assert given.keys() == wanted.keys()
    for name, meaning in wanted.items():
        torch.testing.assert_close(torch.from_numpy(given[name]), meaning, rtol=1e-4, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_onnx_runtime_keeps_integers_packed(paths: dict[str, Path]) -> None:
    """Only floats that are no integers are widened when the model is loaded."""
    nodes = onnxruntime_nodes(paths["onnxruntime-cpu"])
    floats = sum(f.weight in ("e2m1", "e4m3", "e5m2") for f in FORMS) + 1
    assert nodes["MatMulNBits"] == len(FORMS) + 2 - floats
    assert not {"DequantizeLinear", "Gather", "Cast"} & set(nodes)


def test_openvino_keeps_what_it_was_given(paths: dict[str, Path]) -> None:
    nodes = openvino_nodes(paths["openvino"], example_of_forms(), DYNAMIC_QUANTIZATION_GROUP_SIZE="0")
    products = Counter(precision for layer, _, precision in nodes if layer == "FullyConnected")
    assert products["i4"] == sum(f.weight in ("int4", "int3", "int2", "e1m2") for f in FORMS)
    assert products["i8"] == sum(f.weight in ("int8", "int6") for f in FORMS)


@pytest.mark.parametrize("form", [Form(weight="int4", group=64, mode="none"), Form(weight="e1m2")], ids=str)
def test_four_bit_weights_take_four_bits(form: Form, tmp_path: Path) -> None:
    """Within 3 % of codes, scales and biases; ONNX external data starts each tensor on a cache line or page, which small ones feel."""
    count = 4
    graph = graph_of_forms([form] * count)
    numbers = INPUTS * OUTPUTS * count
    scales = numbers // form.group if form.group else OUTPUTS * count
    least = numbers // 2 + 4 * scales + 4 * OUTPUTS * count // 2
    for backend in PROCESSORS:
        size = written(graph, tmp_path, backend).with_suffix(".data").stat().st_size
        assert least <= size <= 1.03 * least + 256, backend
    assert ir_from_onnx(tmp_path / "openvino.onnx", tmp_path / "m.xml").bin.stat().st_size <= 1.03 * least
