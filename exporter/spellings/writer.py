"""Writing ONNX nodes, constants and stored weights while one operation is replaced by its spelling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir import tape

from dexport.errors import Failure
from dexport.exporter.stored import Stored, hollow, torch_type
from dexport.passes.graph import Weight


class Writer:
    """Collects the nodes of one spelling, and adds what they read to the model's initializers.

    Equal constants are one initializer, so that equal subgraphs of several sites (q, k and v of one attention) become one later.

    Attributes:
        stored: name -> weight, of every initializer that this writer made of a weight.
        opset: of the model.
    """

    def __init__(self, model: ir.Model, weights: Mapping[str, Weight]) -> None:
        self._model = model
        self._weights = weights
        self._tape = tape.Tape()
        self._constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
        self.stored: dict[str, Stored] = {}
        self.opset = model.opset_imports[""]

    def op(self, kind: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> ir.Value:
        """Appends a node of one output."""
        version = 1 if domain else None
        while inputs and inputs[-1] is None:
            inputs = inputs[:-1]
        return self._tape.op(kind, inputs, attributes, domain=domain, version=version)

    def pair(self, kind: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> tuple[ir.Value, ir.Value]:
        """Appends a node of two outputs."""
        first, second = self._tape.op_multi_out(kind, inputs, attributes, num_outputs=2, domain=domain, version=1 if domain else None)
        return first, second

    def nodes(self) -> list[ir.Node]:
        """The nodes since the last call."""
        made, self._tape = list(self._tape.nodes), tape.Tape()
        for node in made:
            if node.domain:
                self._model.opset_imports.setdefault(node.domain, node.version or 1)
        return made

    def constant(self, values: Any, dtype: ir.DataType) -> ir.Value:
        """A constant that stands in the model file: a number, an array or a tensor, cast to `dtype`."""
        array = values.detach().to(torch.float64).numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
        tensor = ir.tensor(np.ascontiguousarray(array.astype(dtype.numpy())).reshape(array.shape), dtype=dtype)
        key = (dtype.name, array.shape, tensor.tobytes())
        if key not in self._constants:
            name = f"constant.{len(self._constants)}"
            value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(dtype), const_value=tensor)
            self._model.graph.initializers[name] = self._constants[key] = value
        return self._constants[key]

    def weight(self, name: str, stored: Stored) -> ir.Value:
        """The initializer `name` (made at most once) that holds `stored`."""
        if name not in self.stored:
            self.stored[name] = stored
            add_initializer(self._model, name, stored)
        return self._model.graph.initializers[name]

    def source(self, value: ir.Value | None) -> Weight | None:
        """Where the values of a weight or constant of the model come from; None for what is computed.

        Raises:
            Failure: a constant of a type that has no PyTorch equal.
        """
        if value is None or value.name is None:
            return None
        if value.name in self._weights:
            return self._weights[value.name]
        tensor = value.const_value
        if tensor is None and (node := value.producer()) is not None and node.op_type == "Constant":
            tensor = node.attributes["value"].as_tensor()
        if tensor is None:
            return None
        held = tensor
        try:
            dtype = torch_type(held.dtype)
        except StopIteration:
            raise Failure(str(value.name), expected="a constant of a PyTorch dtype", got=held.dtype.name, fix="report this") from None
        shape = tuple(int(size) for size in held.shape.numpy())
        return Weight(shape, dtype, lambda: torch.from_numpy(held.numpy().copy()).to(dtype), f"constant {value.name}")


def add_initializer(model: ir.Model, name: str, stored: Stored) -> None:
    """Adds the hollow initializer of a weight."""
    tensor = hollow(name, stored)
    value = ir.Value(name=name, shape=ir.Shape(stored.shape), type=ir.TensorType(stored.dtype), const_value=tensor)
    model.graph.initializers[name] = value
