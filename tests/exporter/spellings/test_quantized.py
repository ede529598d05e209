"""The form of a backend replaces dexport's operations, and a form that it lacks is refused by name."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from dexport.errors import Failure
from dexport.exporter.asked_precision import asked_precisions
from dexport.exporter.legality import check_onnx_for_tensorrt
from dexport.targets.formats import Backend
from tests.exporter.spellings.backends import written
from tests.exporter.spellings.quantized_graphs import Form, graph_of_forms

BLOCKS = Form(weight="int4", group=64, mode="dynamic", block=64)
SHARED = [Form(), Form()]


def test_nothing_of_the_dialect_is_left_and_equal_inputs_are_quantized_once(tmp_path: Path) -> None:
    model = onnx.load(written(graph_of_forms(SHARED), tmp_path, "tensorrt-kit", 20), load_external_data=False)
    assert {node.domain for node in model.graph.node} == {""} == {item.domain for item in model.opset_import}
    assert sum(node.op_type == "QuantizeLinear" for node in model.graph.node) == 1
    onnx.checker.check_model(str(tmp_path / "tensorrt-kit.onnx"))


@pytest.mark.parametrize(
    ("backend", "form", "what"),
    [
        ("tensorrt-rtx", BLOCKS, "weights int4 per block 64, activations int8 dynamic per block 64"),
        ("openvino", BLOCKS, "weights int4 per block 64"),
        ("openvino", Form(weight="e4m3", activation="e4m3"), "weights e4m3 per channel, activations e4m3 static"),
        ("onnxruntime-cuda", Form(), "weights int8 per channel, activations int8 static"),
        ("onnxruntime-cpu", Form(weight="e2m1", activation="e3m2", mode="dynamic"), "weights e2m1 per channel, activations e3m2 dynamic"),
    ],
)
def test_a_form_that_a_backend_lacks_is_refused(backend: Backend, form: Form, what: str, tmp_path: Path) -> None:
    with pytest.raises(Failure, match=rf"linears.0.weight_codes: expected a form that {backend} computes exactly, got {what}"):
        written(graph_of_forms([form]), tmp_path, backend)


@pytest.mark.parametrize(("tensorrt", "opset", "eight_bit_floats"), [((10, 3), 20, False), ((10, 16), 24, True)])
def test_forms_of_a_jetson_are_legal_and_ask_for_low_bits(
    tensorrt: tuple[int, int], opset: int, eight_bit_floats: bool, tmp_path: Path
) -> None:
    forms = [Form(), Form(mode="dynamic"), *([Form(weight="e4m3", activation="e4m3")] if eight_bit_floats else [])]
    path = written(graph_of_forms(forms), tmp_path, "tensorrt-kit", opset)
    assert not check_onnx_for_tensorrt(path, tensorrt=tensorrt, opset_max=opset)
    assert [product.precision for product in asked_precisions(path)] == ["int8", "int8", "fp8"][: len(forms)]
