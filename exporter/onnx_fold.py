"""Folds what an ONNX graph computes from constants: shapes, axes, position tables. Weights are never read.

TensorRT's parser wants axes and shapes as constants, and the exporter writes many of them as small computations.
"""

from __future__ import annotations

import warnings
from collections.abc import Set

import numpy as np
import onnx_ir as ir
from onnx import helper
from onnx.reference import ReferenceEvaluator

_LARGEST_BYTES = 1 << 20
_SMALL_BYTES = 4096
_NEVER = {"Constant", "If", "Loop", "Scan", "RandomNormal", "RandomUniform"}


def fold_constants(model: ir.Model, weights: Set[str]) -> int:
    """Replaces nodes whose inputs are all constants by their values; returns how many. `weights` are initializers to leave alone."""
    known: dict[str, np.ndarray] = {}
    for name, initializer in model.graph.initializers.items():
        tensor = initializer.const_value
        if name not in weights and tensor is not None and tensor.nbytes <= _LARGEST_BYTES:
            known[name] = tensor.numpy()
    folded = 0
    for node in list(model.graph):
        if node.op_type == "Constant":
            tensor = node.attributes["value"].as_tensor() if "value" in node.attributes else None
            values = tensor.numpy() if tensor is not None else _plain_constant(node)
            known[str(node.outputs[0].name)] = values
        elif _foldable(node, known):
            results = _evaluate(node, known, model)
            if _worth_storing(results, [known[str(i.name)] for i in node.inputs if i is not None]):
                for output, result in zip(node.outputs, results):
                    known[str(output.name)] = result
                    _replace(model, output, result)
                model.graph.remove(node, safe=True)  # which also ends its uses of the constants that it read
                folded += 1
    return folded


def _worth_storing(results: list[np.ndarray], inputs: list[np.ndarray]) -> bool:
    """Small values always; larger ones only if they are no larger than what they come from (a table of positions is not)."""
    size = sum(r.nbytes for r in results)
    return size <= _SMALL_BYTES or size <= min(_LARGEST_BYTES, sum(i.nbytes for i in inputs))


def _plain_constant(node: ir.Node) -> np.ndarray:
    for key, dtype in (("value_ints", np.int64), ("value_int", np.int64), ("value_floats", np.float32), ("value_float", np.float32)):
        if key in node.attributes:
            return np.array(node.attributes[key].value, dtype)
    raise ValueError(f"Constant {node.name} holds none of tensor, ints and floats")


def _foldable(node: ir.Node, known: dict[str, np.ndarray]) -> bool:
    plain = node.domain in ("", "ai.onnx") and node.op_type not in _NEVER and len(node.inputs) > 0
    return plain and all(i is None or i.name in known for i in node.inputs)


def _evaluate(node: ir.Node, known: dict[str, np.ndarray], model: ir.Model) -> list[np.ndarray]:
    """Runs one node with the reference implementation."""
    proto = ir.serde.serialize_node(node)
    names = [str(i.name) for i in node.inputs if i is not None]
    graph = helper.make_graph(
        [proto],
        "fold",
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(known[n].dtype), known[n].shape) for n in dict.fromkeys(names)],
        [helper.make_empty_tensor_value_info(str(o.name)) for o in node.outputs],
    )
    single = helper.make_model(graph, opset_imports=[helper.make_opsetid("", model.opset_imports[""])])
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # log(0) behind a Where, as in T5's position buckets, is what the model does too
        return [np.asarray(r) for r in ReferenceEvaluator(single).run(None, {n: known[n] for n in names})]


def _replace(model: ir.Model, output: ir.Value, result: np.ndarray) -> None:
    """Turns a node's output into an initializer of the same name, so that its readers need no change."""
    tensor = ir.tensor(result, name=output.name)
    value = ir.Value(name=output.name, shape=ir.Shape(result.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    output.replace_all_uses_with(value, replace_graph_outputs=True)
    output.name = f"{output.name}.folded"
    model.graph.initializers[str(value.name)] = value
