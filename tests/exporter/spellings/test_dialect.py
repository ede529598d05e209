"""dexport's operations enter an ONNX graph as one node each, with every operand in its place."""

from __future__ import annotations

import torch

from dexport.exporter.spellings import dialect
from dexport.exporter.spellings.aten import translations
from tests.exporter.spellings.quantized_graphs import Form, graph_of_forms


def test_a_quantized_linear_is_one_node() -> None:
    graph = graph_of_forms([Form(mode="table", centre=True)])
    program = torch.export.export(graph.module, (torch.ones(2, 6, 128), torch.ones(1, 2)), strict=False)
    exported = torch.onnx.export(
        program, dynamo=True, opset_version=20, optimize=False, verbose=False, custom_translation_table=dict(translations())
    )
    assert exported is not None
    (node,) = [n for n in exported.model.graph if n.domain == dialect.DOMAIN]
    assert node.op_type == dialect.LINEAR
    present = dict(zip(dialect.LINEAR_TENSORS, (i is not None for i in node.inputs), strict=True))
    assert [name for name, there in present.items() if not there] == ["weight_global"]
    assert node.attributes.get_string("activation_mode") == "table" and node.attributes.get_string("micro") == ""
