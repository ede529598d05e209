"""What products are asked to compute in: quantized where both operands come from codes, else their floating-point type."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.parser

from dexport.exporter.asked_precision import asked_precisions
from dexport.runtime.finalize.precision import Product

_HEAD = '<ir_version: 10, opset_import: ["" : 21]> g '


def _asked(tmp_path: Path, text: str) -> tuple[Product, ...]:
    model = onnx.parser.parse_model(_HEAD + text)
    for node in model.graph.node:
        node.name = f"node_{node.output[0]}"
    onnx.save(onnx.shape_inference.infer_shapes(model), str(tmp_path / "m.onnx"))
    return asked_precisions(tmp_path / "m.onnx")


def test_both_operands_from_codes(tmp_path: Path) -> None:
    text = """(float[2, 4] x, float[1] b) => (float[2, 4] y) <float s = {0.5}, int8 z = {0}, int8[4, 4] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6, 7}> {
      q = QuantizeLinear (x, s, z)
      d = DequantizeLinear (q, s, z)
      v = DequantizeLinear (w, s)
      t = Transpose <perm = [1, 0]> (v)
      p = MatMul (d, t)
      m = Mul (p, b)
      y = Add (m, x)
    }"""  # noqa: E501
    assert _asked(tmp_path, text) == (Product(("node_p", "node_m", "node_y", "y", "node_d"), "int8"),)


def test_quantized_weights_alone_leave_the_type_of_the_activations(tmp_path: Path) -> None:
    text = """(float16[2, 2] x) => (float16[2, 2] y) <float16 s = {1}, int8[2, 2] w = {1, 2, 3, 4}> {
      v = DequantizeLinear (w, s)
      y = MatMul (x, v)
    }"""
    assert _asked(tmp_path, text) == (Product(("node_y", "y"), "fp16"),)


def test_a_result_that_goes_two_ways_ends_its_names(tmp_path: Path) -> None:
    text = """(float[2, 2] x) => (float[2, 2] y, float[2, 2] z) {
      p = MatMul (x, x)
      y = Add (p, x)
      z = Mul (p, x)
    }"""
    assert _asked(tmp_path, text) == (Product(("node_p",), "fp32"),)
