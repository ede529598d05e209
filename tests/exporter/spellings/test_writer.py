"""Equal constants are one initializer, and what is computed has no source."""

from __future__ import annotations

import onnx_ir as ir
import torch

from dexport.exporter.spellings.writer import Writer
from dexport.exporter.stored import plain
from dexport.passes.graph import Weight

WEIGHT = Weight((2,), torch.float32, lambda: torch.tensor([1.0, 2.0]), "w")


def _writer() -> tuple[Writer, ir.Model]:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 20})
    model = ir.Model(graph, ir_version=10)
    return Writer(model, {"w": WEIGHT}), model


def test_equal_constants_are_one() -> None:
    writer, model = _writer()
    one, again = writer.constant(1.0, ir.DataType.FLOAT), writer.constant(torch.tensor(1.0), ir.DataType.FLOAT)
    half, row = writer.constant(1.0, ir.DataType.FLOAT16), writer.constant([1.0], ir.DataType.FLOAT)
    assert one is again and len({id(one), id(half), id(row)}) == 3
    assert set(model.graph.initializers) == {one.name, half.name, row.name}


def test_a_weight_is_added_once_and_sources_are_found() -> None:
    writer, model = _writer()
    value = writer.weight("codes", plain(WEIGHT))
    assert writer.weight("codes", plain(WEIGHT)) is value and set(model.graph.initializers) == {"codes"}
    known = ir.Value(name="w")
    assert writer.source(known) is WEIGHT
    source = writer.source(writer.constant([3.0, 4.0], ir.DataType.FLOAT))
    assert source is not None and source.load().tolist() == [3.0, 4.0]
    assert writer.source(None) is None and writer.source(writer.op("Neg", known)) is None


def test_nodes_are_handed_over_once_and_their_domain_is_declared() -> None:
    writer, model = _writer()
    x = ir.Value(name="x")
    first, second = writer.pair("Two", x, domain="com.microsoft")
    y = writer.op("Add", first, second)
    assert [node.op_type for node in writer.nodes()] == ["Two", "Add"] and writer.nodes() == []
    assert y.producer() is not None and model.opset_imports["com.microsoft"] == 1
