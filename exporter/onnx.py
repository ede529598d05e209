"""Graph -> ONNX, with weights streamed tensor by tensor into external data.

The graph is exported while its weights are hollow; the initializers are then replaced by references into one data file, which is
written by reading one weight at a time. Peak memory is the largest tensor, whatever the model's size.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import torch
from onnx_ir.passes import common as cleanup

from dexport.errors import Failure
from dexport.exporter.external_data import WeightFile
from dexport.exporter.onnx_fold import fold_constants
from dexport.exporter.spellings.aten import translations
from dexport.exporter.spellings.quantized import spell
from dexport.exporter.spellings.writer import add_initializer
from dexport.exporter.stored import Stored, derived, ir_type, permuted, plain
from dexport.passes.graph import BATCH, STEPS, Graph, Port
from dexport.targets.formats import Backend

_log = logging.getLogger(__name__)
_EXAMPLE = {BATCH: 2, STEPS: 3}
_INLINE_BYTES = 256  # shapes, scalars and the like stay inside the model file


@dataclass(frozen=True)
class OnnxFile:
    """An emitted model: the file, its external data (None if it has none), and the interface."""

    path: Path
    weights: Path | None
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    weight_bytes: int


def onnx_from_graph(
    graph: Graph,
    path: Path,
    *,
    opset: int,
    weights: WeightFile,
    storage: torch.dtype = torch.float32,
    backend: Backend = "onnxruntime-cpu",
) -> OnnxFile:
    """Writes `graph` to `path`; weights go into `weights`, which several graphs may share.

    Args:
        backend: whose form quantized operations get.
        storage: dtype in which fp32 matrices and kernels are stored; a Cast widens narrower ones when the model is loaded.

    Raises:
        Failure: an operation has no ONNX form (a quantized one: none on this backend), or a weight cannot be read.
    """
    model = _translated(graph, opset)
    cleanup.IdentityEliminationPass()(model)
    stored = spell(model, graph.used_weights(), backend)
    fold_constants(model, set(stored))
    cleanup.CommonSubexpressionEliminationPass()(model)
    named = _transposed_at_rest(model, stored)
    cleanup.RemoveUnusedNodesPass()(model)
    if storage is not torch.float32:
        named = _narrowed(model, named, storage)
    total = _place_weights(model, named, weights, path)
    _name_interface(model, graph)
    model.producer_name, model.producer_version = "dexport", None
    ir.save(model, path)
    _log.debug("wrote %s: %d nodes, %d weight bytes", path.name, len(model.graph), total)
    return OnnxFile(path, weights.path if total else None, graph.inputs, graph.outputs, total)


def _translated(graph: Graph, opset: int) -> ir.Model:
    symbols = {name: torch.export.Dim(name, min=1, max=4096) for name in (BATCH, STEPS)}
    arguments = tuple(torch.ones([_EXAMPLE[d] if isinstance(d, str) else d for d in p.shape], dtype=p.dtype) for p in graph.inputs)
    shapes = tuple({i: symbols[str(d)] for i, d in enumerate(p.shape) if isinstance(d, str)} for p in graph.inputs)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(graph.module, arguments, dynamic_shapes=shapes, strict=False)
            exported = torch.onnx.export(
                program, dynamo=True, opset_version=opset, optimize=False, verbose=False, custom_translation_table=dict(translations())
            )
    except Exception as error:
        reason = _innermost(error)
        wanted = f"a graph with an ONNX form at opset {opset}"
        raise Failure(graph.name, expected=wanted, got=reason, fix="run with --debug to see the operation") from error
    assert exported is not None
    return exported.model


def _innermost(error: BaseException) -> str:
    """The last line of the first cause: the exporter wraps what went wrong in several layers of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[-1]


def _transposed_at_rest(model: ir.Model, stored: Mapping[str, Stored]) -> dict[str, Stored]:
    """Transpose(weight) -> a weight that is stored transposed: runtimes have fast kernels for MatMul(x, stored) only.

    Returns initializer name -> weight, transposed ones included.
    """
    named = dict(stored)
    for node in list(model.graph):
        source = node.inputs[0] if node.op_type == "Transpose" and node.inputs else None
        if source is None or source.name not in stored:
            continue
        weight = named[str(source.name)].weight
        order = tuple(node.attributes.get_ints("perm", tuple(reversed(range(len(weight.shape))))))
        name = f"{source.name}.transposed"
        if name not in model.graph.initializers:
            named[name] = plain(permuted(weight, order))
            add_initializer(model, name, named[name])
        node.outputs[0].replace_all_uses_with(model.graph.initializers[name])
        model.graph.remove(node, safe=True)
    return named


def _narrowed(model: ir.Model, stored: Mapping[str, Stored], storage: torch.dtype) -> dict[str, Stored]:
    """Stores fp32 matrices and kernels in `storage`, each behind a Cast back to fp32."""
    named = dict(stored)
    first = model.graph[0]
    for name, one in stored.items():
        weight = one.weight
        value = model.graph.initializers.get(name)  # a weight that is stored transposed is gone under its own name
        if value is None or weight.dtype is not torch.float32 or len(weight.shape) < 2 or not value.uses():
            continue
        named[name] = plain(derived(weight, weight.shape, storage, f"as {storage}", _cast(storage)))
        cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT})
        cast.outputs[0].name, cast.outputs[0].shape, cast.outputs[0].type = f"{name}.wide", value.shape, ir.TensorType(ir.DataType.FLOAT)
        value.replace_all_uses_with(cast.outputs[0])
        cast.replace_input_with(0, value)
        model.graph.insert_before(first, cast)
        value.type = ir.TensorType(ir_type(storage))
    return named


def _cast(dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda tensor: tensor.to(dtype)


def _place_weights(model: ir.Model, weights: Mapping[str, Stored], file: WeightFile, path: Path) -> int:
    """Points every weight and every large constant at the data file, writing what is not there yet."""
    total = 0
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del model.graph.initializers[name]
            continue
        weight = weights.get(name)
        if weight is None:
            constant = value.const_value
            if constant is None or constant.nbytes <= _INLINE_BYTES:
                continue
            place = file.put_bytes(constant.tobytes())
            dtype, shape = constant.dtype, tuple(constant.shape.numpy())
        else:
            place = file.put(weight.weight)
            dtype, shape = weight.dtype, weight.shape
        total += place.length
        where = (file.path.name, place.offset, place.length)
        value.const_value = ir.ExternalTensor(*where, dtype, shape=ir.Shape(shape), name=name, base_dir=path.parent)
    return total


def _name_interface(model: ir.Model, graph: Graph) -> None:
    for ports, values in ((graph.inputs, model.graph.inputs), (graph.outputs, model.graph.outputs)):
        for port, value in zip(ports, values, strict=True):
            value.name = port.name
            value.shape = ir.Shape(port.shape)
            value.type = ir.TensorType(ir_type(port.dtype))
