"""Folding keeps what a graph computes, leaves weights alone, and leaves nothing foldable behind."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from dexport.exporter.onnx_fold import fold_constants

_GRAPH = """<ir_version: 10, opset_import: ["" : 20]> g (float[2, 6] x) => (float[3, 4] y)
<float[2, 6] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, int64[1] one = {1}> {
  three = Constant <value_ints: ints = [3]> ()
  four = Add (three, one)
  shape = Concat <axis: int = 0> (three, four)
  doubled = Add (w, w)
  sum = Add (x, doubled)
  y = Reshape (sum, shape)
}"""


def _folded(text: str, weights: set[str]) -> tuple[onnx.ModelProto, onnx.ModelProto, int]:
    before = onnx.parser.parse_model(text)
    model = ir.serde.deserialize_model(before)
    count = fold_constants(model, weights)
    return before, ir.serde.serialize_model(model), count


def test_shapes_fold_and_weights_do_not() -> None:
    before, after, count = _folded(_GRAPH, {"w"})
    onnx.checker.check_model(after)
    assert count == 2
    assert [node.op_type for node in after.graph.node if node.op_type != "Constant"] == ["Add", "Add", "Reshape"]
    x = np.random.default_rng(0).standard_normal((2, 6)).astype(np.float32)
    expected, given = (ReferenceEvaluator(model).run(None, {"x": x})[0] for model in (before, after))
    assert np.array_equal(expected, given)


def test_a_second_time_finds_nothing() -> None:
    model = ir.serde.deserialize_model(onnx.parser.parse_model(_GRAPH))
    assert fold_constants(model, {"w"}) == 2
    assert fold_constants(model, {"w"}) == 0


def test_a_large_result_stays_a_computation() -> None:
    text = """<ir_version: 10, opset_import: ["" : 20]> g (float[1] x) => (float[1] y) <int64[1] size = {300000}, float[1] one = {1}> {
      wide = Expand (one, size)
      total = ReduceSum <keepdims: int = 1> (wide)
      y = Add (x, total)
    }"""
    _, after, count = _folded(text, set())
    assert count == 0
    assert [node.op_type for node in after.graph.node] == ["Expand", "ReduceSum", "Add"]


def test_random_numbers_and_foreign_operators_stay() -> None:
    text = """<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]> g () => (float[2] y) <float[2] a = {1, 2}> {
      b = com.microsoft.Gelu (a)
      r = RandomNormal <shape: ints = [2]> ()
      y = Add (b, r)
    }"""
    assert _folded(text, set())[2] == 0


@pytest.mark.parametrize(
    "value", ["value_float: float = 2.5", "value_floats: floats = [2.5]", "value_int: int = 2", "value_ints: ints = [2]"]
)
def test_constants_in_every_form(value: str) -> None:
    kind = "float" if "float" in value else "int64"
    text = f"""<ir_version: 10, opset_import: ["" : 20]> g ({kind}[1] x) => ({kind}[1] y) {{
      c = Constant <{value}> ()
      d = Add (c, c)
      y = Add (x, d)
    }}"""
    before, after, count = _folded(text, set())
    x = np.ones(1, np.float32 if kind == "float" else np.int64)
    assert count == 1
    assert ReferenceEvaluator(after).run(None, {"x": x})[0] == ReferenceEvaluator(before).run(None, {"x": x})[0]
