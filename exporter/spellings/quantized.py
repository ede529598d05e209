"""Replaces dexport's quantized operations in an ONNX graph by the form of one backend."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from dexport.exporter.spellings import dialect
from dexport.exporter.spellings.integer import integer_linear
from dexport.exporter.spellings.site import Site, read_site
from dexport.exporter.spellings.writer import Writer
from dexport.exporter.stored import Stored, plain
from dexport.passes.graph import Weight
from dexport.targets.formats import Backend


def spell(model: ir.Model, weights: Mapping[str, Weight], backend: Backend) -> dict[str, Stored]:
    """Replaces every node of the domain "dexport" in `model`.

    Returns:
        Initializer name -> weight, of those that the graph had and of those that spellings made.

    Raises:
        Failure: an operation has no form on this backend (`quantized_forms.exact` tells before anything is built).
    """
    writer = Writer(model, weights)
    for node in list(model.graph):
        if node.domain != dialect.DOMAIN:
            continue
        site = read_site(node, writer)
        result = _spelled(site, writer, backend)
        old = node.outputs[0]
        result.shape, result.type = old.shape, old.type
        model.graph.insert_before(node, writer.nodes())
        old.replace_all_uses_with(result, replace_graph_outputs=True)
        model.graph.remove(node, safe=True)
    model.opset_imports.pop(dialect.DOMAIN, None)
    named = {name: plain(weights[name]) for name in model.graph.initializers if name in weights}
    return named | writer.stored


def _spelled(site: Site, writer: Writer, backend: Backend) -> ir.Value:
    return integer_linear(site, writer, four_bits=backend != "tensorrt-rtx")
