"""Whether the ONNX parser of a given TensorRT takes a model, checked before the model travels to the device.

TensorRT's parser stops at the first operator it lacks, on the device, after minutes; some faults it does not report at all (a
scale that is no constant makes the GEMM run in half precision). This module reads the structure of an ONNX file, without its
weights, and reports every offence with its remedy. It knows operators, opsets, element types, which inputs must be constants
and the rules of Q/DQ: constant, positive scales of the right number and type, zero points of 0, 4-bit rows of even length. For
TensorRT up to 10.3 it also knows which operators take no integers. It does not know TensorRT's own limits on shapes, so an empty
list is necessary for a build, not sufficient.

The table of operators is ``tensorrt_operators.json``; it names its sources. Of a node of a plugin that comes with the model it knows what
plugins/NAME/manifest.json says: attributes, number and types of inputs.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, external_data_helper, numpy_helper

from dexport.errors import UserError
from dexport.exporter.plugin_nodes import PluginNode, plugin_node

Version = tuple[int, int]

LOWEST_OPSET = 9
_RUNTIME_SCALE: Version = (10, 13)
"""Before this version the scale of Q/DQ must be a build-time constant (NvInfer.h, IQuantizeLayer)."""
_QDQ = ("QuantizeLinear", "DequantizeLinear")
_STANDARD = ("", "ai.onnx")
_MAX_PROTO_BYTES = 2**31 - 1


@dataclass(frozen=True)
class Problem:
    """One thing that the parser will not take.

    Attributes:
        where: operator and node, or the tensor.
        expected: what would have been right.
        got: what the model has.
        fix: what to do, as an imperative sentence.
    """

    where: str
    expected: str
    got: str
    fix: str

    def __str__(self) -> str:
        return f"{self.where}: expected {self.expected}, got {self.got}; {self.fix}"


@dataclass(frozen=True)
class _Context:
    """What the checks of one graph need to know of its surroundings."""

    version: Version
    opset: int
    functions: frozenset[tuple[str, str]]
    plugins: dict[tuple[str, str], PluginNode]
    folder: Path
    constants: dict[str, TensorProto]
    derived: frozenset[str]
    types: dict[str, int]
    shapes: dict[str, tuple[int | None, ...]]


def check_onnx_for_tensorrt(path: Path, *, tensorrt: Version, opset_max: int, plugins: Sequence[str] = ()) -> list[Problem]:
    """Everything in an ONNX file that this TensorRT's parser cannot take; empty if nothing was found.

    Args:
        path: an ONNX file, whose external data need not be there except for scales and zero points.
        tensorrt: major and minor version.
        opset_max: highest opset to accept, `Target.onnx_opset`.
        plugins: folders of the plugins whose nodes the model may have, `Target.plugins`.

    Raises:
        UserError: if the file cannot be read as ONNX.
    """
    if path.is_file() and path.stat().st_size > _MAX_PROTO_BYTES:
        size = f"{path.stat().st_size} bytes"
        return [Problem(path.name, "at most 2 GiB, the limit of protobuf", size, "store the weights as external data")]
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf and onnx raise many types for a damaged file
        raise UserError(
            str(path), expected="an ONNX model", got=f"{type(error).__name__}: {error}", fix="export the component again"
        ) from error
    opset = next((item.version for item in model.opset_import if item.domain in _STANDARD), 0)
    problems = _opset_problems(path.name, opset, opset_max)
    functions = frozenset((item.domain, item.name) for item in model.functions)
    nodes = {(node.domain, node.name): node for node in map(plugin_node, plugins)}
    context = _Context(tensorrt, opset, functions, nodes, path.parent, {}, frozenset(), {}, {})
    problems += _graph_problems(model.graph, context)
    for function in model.functions:
        for node in function.node:
            problems += _operator_problems(node, context)
    return problems


@cache
def _table() -> dict[str, Any]:
    text = resources.files(__package__).joinpath("tensorrt_operators.json").read_text(encoding="utf-8")
    table: dict[str, Any] = json.loads(text)
    return table


def _parse(version: str) -> Version:
    major, minor = version.split(".")
    return int(major), int(minor)


def _dotted(version: Version) -> str:
    return f"{version[0]}.{version[1]}"


def _opset_problems(name: str, opset: int, opset_max: int) -> list[Problem]:
    if LOWEST_OPSET <= opset <= opset_max:
        return []
    got = f"opset {opset}" if opset else "no opset"
    return [Problem(name, f"opset {LOWEST_OPSET} to {opset_max}", got, f"export with opset {opset_max} or lower")]


def _graph_problems(graph: GraphProto, outer: _Context) -> list[Problem]:
    context = _within(graph, outer)
    problems = []
    for tensor in graph.initializer:
        problems += _type_problems(f"initializer {tensor.name}", tensor.data_type, context.version, interface=False)
    interface = {value.name for value in (*graph.input, *graph.output)}
    for value in {value.name: value for value in (*graph.value_info, *graph.input, *graph.output)}.values():
        kind = value.type.tensor_type.elem_type
        problems += _type_problems(f"tensor {value.name}", kind, context.version, interface=value.name in interface)
    for node in graph.node:
        problems += _operator_problems(node, context)
        if node.domain in _STANDARD:
            problems += _operand_problems(node, context)
            if node.op_type in _QDQ:
                problems += _quantizer_problems(node, context)
        for subgraph in _subgraphs(node):
            problems += _graph_problems(subgraph, context)
    return problems


def _within(graph: GraphProto, outer: _Context) -> _Context:
    """The context inside a graph: constants of the graphs around it, and its own."""
    hidden = {value.name for value in graph.input}  # an inner name hides an outer one
    constants = {name: tensor for name, tensor in outer.constants.items() if name not in hidden}
    constants |= {tensor.name: tensor for tensor in graph.initializer}
    derived = (set(outer.derived) - hidden) | set(constants)
    for node in graph.node:
        if node.op_type == "Constant":
            tensor = _constant_tensor(node.attribute[0]) if node.attribute else None
            if tensor is not None:
                constants[node.output[0]] = tensor
            derived.update(node.output)
        elif node.input and all(name in derived for name in node.input if name) and not any(True for _ in _subgraphs(node)):
            derived.update(node.output)
    types, shapes = dict(outer.types), dict(outer.shapes)
    for value in (*graph.value_info, *graph.input, *graph.output):
        types[value.name] = value.type.tensor_type.elem_type
        shapes[value.name] = tuple(d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim)
    types |= {name: tensor.data_type for name, tensor in constants.items()}
    shapes |= {name: tuple(tensor.dims) for name, tensor in constants.items()}
    return dataclasses.replace(outer, constants=constants, derived=frozenset(derived), types=types, shapes=shapes)


def _constant_tensor(attribute: AttributeProto) -> TensorProto | None:
    """The value of a Constant node; None for strings and sparse tensors."""
    if attribute.type == AttributeProto.TENSOR:
        return attribute.t
    if attribute.type in (AttributeProto.INT, AttributeProto.INTS, AttributeProto.FLOAT, AttributeProto.FLOATS):
        return numpy_helper.from_array(np.asarray(onnx.helper.get_attribute_value(attribute)))
    return None


def _subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def _label(node: NodeProto) -> str:
    return f"{node.op_type} {node.name or (node.output[0] if node.output else '')}".strip()


def _operator_problems(node: NodeProto, context: _Context) -> list[Problem]:
    if (node.domain, node.op_type) in context.functions:
        return []
    if (plugin := context.plugins.get((node.domain, node.op_type))) is not None:
        types = [context.types.get(name, TensorProto.UNDEFINED) for name in node.input]
        fix = "report this: the exporter writes other nodes"
        return [Problem(_label(node), expected, got, fix) for expected, got in plugin.faults(node, types)]
    if node.domain not in (*_STANDARD, "trt"):
        expected = "an ONNX operator or an operator of the model's own functions"
        return [Problem(_label(node), expected, f"{node.domain}::{node.op_type}", "spell it with ONNX operators")]
    table = _table()
    since = (table["trt_domain"] if node.domain == "trt" else table["operators"]).get(node.op_type)
    expected = f"an operator that the parser of TensorRT {_dotted(context.version)} has"
    if since is None:
        return [Problem(_label(node), expected, node.op_type, "decompose it")]
    newer = table["operator_since_opset"].get(node.op_type)
    if newer is not None and context.opset >= newer["opset"]:
        since = newer["tensorrt"]
    if context.version < _parse(since):
        return [Problem(_label(node), expected, f"{node.op_type}, which it has since {since}", "decompose it into older operators")]
    return []


def _type_problems(where: str, element_type: int, version: Version, *, interface: bool) -> list[Problem]:
    if element_type == TensorProto.UNDEFINED:
        return []
    name = TensorProto.DataType.Name(element_type)
    table = _table()
    if interface and name in table["interface_only_types"]:
        return []
    since = table["types"].get(name)
    if since is not None and version >= _parse(since):
        return []
    expected = f"an element type that TensorRT {_dotted(version)} has"
    if since is not None:
        return [Problem(where, expected, f"{name}, which it has since {since}", "choose another number format")]
    remedies = {
        "DOUBLE": "cast to FLOAT",
        "COMPLEX64": "compute with real and imaginary parts",
        "COMPLEX128": "compute with real and imaginary parts",
    }
    got = f"{name}, which it would narrow silently" if name == "DOUBLE" else name
    return [Problem(where, expected, got, remedies.get(name, "cast to a type it has"))]


def _operand_problems(node: NodeProto, context: _Context) -> list[Problem]:
    table, problems = _table(), _operand_type_problems(node, context)
    for position in table["constant_inputs"].get(node.op_type, ()):
        name = node.input[position] if position < len(node.input) else ""
        if name and name not in context.constants:
            problems.append(Problem(_label(node), f"input {position} to be a constant", f"{name}, computed in the model", "fold it"))
    for what, operands in (("inputs", node.input), ("outputs", node.output)):
        most = table[f"most_{what}"].get(node.op_type)
        used = sum(1 for name in operands if name)
        if most is not None and used > most:
            problems.append(Problem(_label(node), f"at most {most} {what}", str(used), "decompose it"))
    for attribute in node.attribute:
        legal = table["attributes"].get(node.op_type, {}).get(attribute.name)
        value = onnx.helper.get_attribute_value(attribute) if legal is not None else None
        value = value.decode() if isinstance(value, bytes) else value
        if legal is not None and value not in legal:
            expected = f"attribute {attribute.name} to be {' or '.join(str(item) for item in legal)}"
            problems.append(Problem(_label(node), expected, str(value), "decompose it"))
        if node.op_type in ("Cast", "Constant", "ConstantOfShape"):
            problems += _attribute_type_problems(node, attribute, context.version)
    return problems


def _operand_type_problems(node: NodeProto, context: _Context) -> list[Problem]:
    """What an operator is computed in, where the model says it and the versions are those for which the table knows it."""
    rules = _table()["operand_types"]
    kind = context.types.get(node.input[0], TensorProto.UNDEFINED) if node.input else TensorProto.UNDEFINED
    if kind == TensorProto.UNDEFINED or context.version > _parse(rules["until"]):
        return []
    name = TensorProto.DataType.Name(kind)
    legal = next((rule["types"] for rule in rules["types"] if node.op_type in rule["operators"]), [name])
    if name in legal:
        return []
    expected = f"{' or '.join(legal)}, which TensorRT {_dotted(context.version)} computes it in"
    return [Problem(_label(node), expected, f"{node.input[0]} of type {name}", f"cast to {legal[0]} before it")]


def _attribute_type_problems(node: NodeProto, attribute: AttributeProto, version: Version) -> list[Problem]:
    if node.op_type == "Cast" and attribute.name == "to":
        return _type_problems(_label(node), attribute.i, version, interface=True)  # a uint8 output of the model is cast to UINT8
    if attribute.type == AttributeProto.TENSOR:
        return _type_problems(_label(node), attribute.t.data_type, version, interface=False)
    if node.op_type == "Constant" and attribute.name in ("sparse_value", "value_string", "value_strings"):
        return [Problem(_label(node), "a dense constant of numbers", attribute.name, "store it as a dense tensor")]
    return []


def _quantizer_problems(node: NodeProto, context: _Context) -> list[Problem]:
    """The rules of NvInfer.h for IQuantizeLayer and IDequantizeLayer: symmetric, constant scales, per tensor for activations."""
    problems = []
    scale = node.input[1]
    constant_scale = scale in context.derived
    if not constant_scale and context.version < _RUNTIME_SCALE:
        fix = "fold the scale: multiply before a constant-scale Q/DQ and divide after the MatMul"
        expected = f"a constant scale, which TensorRT before {_dotted(_RUNTIME_SCALE)} needs"
        problems.append(Problem(_label(node), expected, f"{scale}, computed in the model", fix))
    tensor = context.constants.get(scale)
    per_channel = tensor is not None and len(tensor.dims) == 1 and tensor.dims[0] > 1
    if node.op_type == "QuantizeLinear" and per_channel and node.input[0] not in context.derived:
        fix = "use one scale per tensor, or fold the others into the weights"
        problems.append(Problem(_label(node), "one scale per activation tensor", f"{scale}, one per channel", fix))
    if tensor is not None:
        problems += _scale_value_problems(node, tensor, context)
    return problems + _scale_form_problems(node, context) + _zero_point_problems(node, context)


def _scale_value_problems(node: NodeProto, scale: TensorProto, context: _Context) -> list[Problem]:
    """The parser refuses scales that are not positive; one that was rounded to fp16 may have become 0 or infinite."""
    values = numpy_helper.to_array(_with_data(scale, context.folder)).astype(np.float64)
    wrong = values[~((values > 0) & np.isfinite(values))]
    if not wrong.size:
        return []
    got = f"{wrong.flat[0]:g} among the {values.size} of {node.input[1]}"
    return [Problem(_label(node), "positive, finite scales", got, "store them in FLOAT, or leave a tensor of zeros unquantized")]


def _scale_form_problems(node: NodeProto, context: _Context) -> list[Problem]:
    """Number, rank and type of the scales against the tensor; an even last size where codes are packed two to a byte."""
    data, scale = (context.shapes.get(name) for name in node.input[:2])
    problems = []
    if data is not None and scale is not None and (expected := _wrong_scale_shape(data, scale, _axis(node, len(data)))):
        problems.append(Problem(_label(node), expected, f"scales {list(scale)} for {list(data)}", "export the scales in that shape"))
    kinds = [context.types.get(name) for name in node.input[:2]]
    if node.op_type == "QuantizeLinear" and all(kinds) and kinds[0] != kinds[1]:
        names = [TensorProto.DataType.Name(kind) for kind in kinds if kind is not None]
        problems.append(Problem(_label(node), f"scales of the input's type {names[0]}", names[1], "store the scales in that type"))
    codes = context.types.get(node.output[0] if node.op_type == "QuantizeLinear" else node.input[0])
    if codes == TensorProto.INT4 and data and data[-1] is not None and data[-1] % 2:
        problems.append(Problem(_label(node), "an even last size of a 4-bit tensor", str(data[-1]), "pad it, or keep it in 8 bits"))
    return problems


def _axis(node: NodeProto, rank: int) -> int:
    """The axis along which scales differ; TensorRT takes 0 where the node does not say."""
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
    return axis + rank if axis < 0 else axis


def _wrong_scale_shape(data: tuple[int | None, ...], scale: tuple[int | None, ...], axis: int) -> str:
    """What would be right; empty if the scales are one for all, one per index of the axis, or blocks along one axis."""
    if all(size == 1 for size in scale):
        return ""
    if len(scale) == 1:
        size = data[axis] if axis < len(data) else None
        return f"as many scales as axis {axis} is long" if size is not None and size != scale[0] else ""
    if len(scale) != len(data):
        return "one scale, one per channel, or as many dimensions as the tensor"
    pairs = [(size, parts) for size, parts in zip(data, scale) if size is not None and parts is not None]
    if sum(size != parts for size, parts in pairs) > 1 or any(size % parts for size, parts in pairs if parts):
        return "blocks of equal length along one axis"
    return ""


def _zero_point_problems(node: NodeProto, context: _Context) -> list[Problem]:
    name = node.input[2] if len(node.input) > 2 else ""
    if not name:
        stated = any(attribute.name == "output_dtype" and attribute.i for attribute in node.attribute)
        if node.op_type == "DequantizeLinear" or stated:
            return []
        return [Problem(_label(node), "a zero point that states the type", "none, which ONNX reads as uint8", "give a zero of type int8")]
    tensor = context.constants.get(name)
    if tensor is None:
        return [Problem(_label(node), "a constant zero point of 0", f"{name}, computed in the model", "quantize symmetrically")]
    problems = _type_problems(f"{_label(node)}, zero point {name}", tensor.data_type, context.version, interface=False)
    if not problems and _has_non_zero(tensor, context.folder):
        problems = [Problem(_label(node), "a zero point of 0", f"{name} with other values", "quantize symmetrically")]
    return problems


def _has_non_zero(tensor: TensorProto, folder: Path) -> bool:
    return bool((numpy_helper.to_array(_with_data(tensor, folder)).astype("float32") != 0).any())


def _with_data(tensor: TensorProto, folder: Path) -> TensorProto:
    """The tensor with its external data in it."""
    if not external_data_helper.uses_external_data(tensor):
        return tensor
    loaded = TensorProto()
    loaded.CopyFrom(tensor)
    external_data_helper.load_external_data_for_tensor(loaded, str(folder))
    return loaded
