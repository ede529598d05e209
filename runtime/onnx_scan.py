"""Looks through an ONNX file before any parser may: bounds, external data, operator domains.

It walks the protobuf wire format (protobuf.dev, "Encoding") over the messages of onnx.proto3 (ONNX 1.19) that can lead
to a tensor or a node, steps over everything else, and copies nothing but names.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from dexport.errors import UserError
from dexport.runtime.manifest import check_path
from dexport.runtime.strict_json import shown

MAX_BYTES = (1 << 31) - 1  # protobuf's own limit
MAX_FIELDS = 4_000_000  # a few seconds of work; a 12 G parameter model has some 200,000
_MAX_DEPTH = 24  # messages in messages; a graph in a branch takes 3
_MAX_NAME_BYTES = 4096
_MAX_NAMES = 4096  # different operators, functions or operator sets
_MAX_RANK = 64
_REBUILD = "get the bundle again or rebuild it"

# Message -> field number -> message type of that field, where it can lead to a node or a tensor.
_MESSAGES: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 8: "OperatorSetId", 20: "TrainingInfo", 25: "Function"},
    "TrainingInfo": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 9: "OperatorSetId", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
}
# Message -> the numbers of the two strings that matter in it.
_STRINGS: dict[str, tuple[int, int]] = {
    "OperatorSetId": (1, 1),  # domain
    "Function": (10, 1),  # domain, name
    "Node": (7, 4),  # domain, op_type
    "ExternalData": (1, 2),  # key, value
}
_OPSET_VERSION = 2
_TENSOR_DIMS, _TENSOR_DTYPE, _TENSOR_RAW, _TENSOR_EXTERNAL, _TENSOR_LOCATION = 1, 2, 9, 13, 14
_TENSOR_TYPED = frozenset({4, 5, 6, 7, 10, 11})  # float, int32, string, int64, double and uint64 data
_LOCATION_EXTERNAL = 1
# Bits per element by TensorProto.DataType; a string takes at least one byte.
_BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 8: 8, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16}
_BITS |= {17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2}
_BYTES_PER_TYPED_BYTE = 8  # an int64 of one byte on the wire
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_COUNT = re.compile(r"[0-9]{1,18}")

Operator = tuple[str, str]  # domain ("" is the standard one), name


@dataclass(frozen=True)
class OnnxSummary:
    """What the scan saw.

    Attributes:
        opsets: version by domain, "" being the standard one.
        operators: number of nodes by (domain, name).
        external: files that hold weights, relative to the ONNX file's folder.
    """

    opsets: dict[str, int]
    operators: Counter[Operator]
    external: frozenset[str]


@dataclass
class _Walk:
    """State of one scan: what was seen, and how many fields may still come."""

    data: memoryview
    where: str
    sizes: Mapping[str, int]
    fields_left: int
    opsets: dict[str, int] = field(default_factory=dict)
    operators: Counter[Operator] = field(default_factory=Counter)
    functions: set[Operator] = field(default_factory=set)
    external: set[str] = field(default_factory=set)


@dataclass
class _Tensor:
    """What one tensor declares and what it has."""

    dims: list[int] = field(default_factory=list)
    dtype: int = 0
    inline_bytes: int = 0
    location: int = 0
    external: dict[str, str] = field(default_factory=dict)


def scan_onnx(data: memoryview, where: str, *, sizes: Mapping[str, int], domains: frozenset[str]) -> OnnxSummary:
    """Scans one ONNX file.

    Args:
        data: the file's bytes; tags and short strings are read, weights are not touched.
        where: its name for errors.
        sizes: bytes of the files that weights may lie in, by path relative to the ONNX file's folder.
        domains: operator domains that are allowed; "" is the standard one. Functions that the file defines itself
            may have any.

    Raises:
        UserError: not a protobuf message, too large or too deep, weights outside `sizes`, a tensor that declares more
            than it has, or an operator from elsewhere.
    """
    walk = _Walk(data, where, sizes, MAX_FIELDS)
    if len(data) > MAX_BYTES:
        raise _error(walk, f"an ONNX file of at most {MAX_BYTES} bytes", f"{len(data)} bytes")
    _visit(walk, "Model", 0, len(data), 0)
    if not walk.opsets:
        raise _error(walk, "an ONNX model", "a file that names no operator set")
    for domain, name in sorted(walk.operators):
        if domain not in domains and (domain, name) not in walk.functions:
            allowed = " or ".join(["ONNX", *sorted(domains - {""})])
            raise _error(walk, f"operators of {allowed}", f"'{shown(name)}' of '{shown(domain)}'")
    return OnnxSummary(walk.opsets, walk.operators, frozenset(walk.external))


def _visit(walk: _Walk, message: str, at: int, end: int, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise _error(walk, f"messages nested at most {_MAX_DEPTH} deep", "deeper")
    if message == "Tensor":
        _visit_tensor(walk, at, end)
        return
    children = _MESSAGES.get(message, {})
    first, second = _STRINGS.get(message, (0, 0))
    strings = {first: "", second: ""}
    version = 0
    for number, wire, value, length in _fields(walk, at, end):
        if number in children:
            _need_bytes(walk, wire, message, number)
            _visit(walk, children[number], value, value + length, depth + 1)
        elif number in strings:
            strings[number] = _text(walk, wire, value, length)
        elif message == "OperatorSetId" and number == _OPSET_VERSION:
            version = value
    domain = "" if strings[first] == "ai.onnx" else strings[first]
    if message == "OperatorSetId":
        walk.opsets[domain] = version
    elif message == "Node":
        walk.operators[domain, strings[second]] += 1
    elif message == "Function":
        walk.functions.add((domain, strings[second]))
    if max(len(walk.opsets), len(walk.operators), len(walk.functions)) > _MAX_NAMES:
        raise _error(walk, f"at most {_MAX_NAMES} different operators", "more")


def _visit_tensor(walk: _Walk, at: int, end: int) -> None:
    tensor = _Tensor()
    for number, wire, value, length in _fields(walk, at, end):
        if number == _TENSOR_DIMS:
            _add_dimensions(walk, tensor.dims, wire, value, length)
        elif number == _TENSOR_DTYPE:
            tensor.dtype = value
        elif number == _TENSOR_LOCATION:
            tensor.location = value
        elif number == _TENSOR_RAW:
            tensor.inline_bytes += length
        elif number in _TENSOR_TYPED:
            tensor.inline_bytes += _BYTES_PER_TYPED_BYTE * (length if wire == _BYTES else 8)
        elif number == _TENSOR_EXTERNAL:
            _need_bytes(walk, wire, "Tensor", number)
            key, text = _external_entry(walk, value, value + length)
            if key not in ("location", "offset", "length", "checksum"):
                raise _error(walk, "external data with location, offset and length", f"'{shown(key)}'")
            tensor.external[key] = text
    available = tensor.inline_bytes
    if tensor.external or tensor.location == _LOCATION_EXTERNAL:
        available = _external_bytes(walk, tensor.external)
    bits = _BITS.get(tensor.dtype)
    if bits is None:
        raise _error(walk, "a tensor of a known type", f"type {tensor.dtype}")
    needed = (math.prod(tensor.dims) * bits + 7) // 8
    if needed > available:
        raise _error(walk, f"{available} bytes for a tensor", f"{needed} declared by its shape")


def _external_entry(walk: _Walk, at: int, end: int) -> tuple[str, str]:
    strings = {1: "", 2: ""}
    for number, wire, value, length in _fields(walk, at, end):
        if number in strings:
            strings[number] = _text(walk, wire, value, length)
    return strings[1], strings[2]


def _external_bytes(walk: _Walk, entries: Mapping[str, str]) -> int:
    """Bytes that a tensor's external data really has, after checking where they are."""
    location = check_path(entries.get("location", ""), f"{walk.where}: external data")
    size = walk.sizes.get(location)
    if size is None:
        raise _error(walk, "weights in a file of the bundle", repr(location))
    offset = _count(walk, entries.get("offset", "0"))
    length = _count(walk, entries.get("length", str(max(size - offset, 0))))
    if offset + length > size:
        raise _error(walk, f"weights within the {size} bytes of {location}", f"{length} bytes from byte {offset}")
    walk.external.add(location)
    return length


def _count(walk: _Walk, text: str) -> int:
    if _COUNT.fullmatch(text) is None:
        raise _error(walk, "a number of bytes", f"'{shown(text)}'")
    return int(text)


def _fields(walk: _Walk, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """The fields of one message: number, wire type, then value and 0, or start and length of a length-delimited one."""
    data = walk.data
    while at < end:
        _spend_field(walk)
        tag, at = _varint(walk, at, end)
        number, wire, length = tag >> 3, tag & 7, 0
        if wire in (_VARINT, _BYTES):
            value, at = _varint(walk, at, end)
            if wire == _BYTES:
                value, length = at, value
                at += length
        elif wire in (_FIXED64, _FIXED32):
            width = 8 if wire == _FIXED64 else 4
            value = int.from_bytes(data[at : at + width], "little")
            at += width
        else:
            raise _error(walk, "a protobuf field", f"wire type {wire} at byte {at}")
        if at > end or number == 0:
            raise _error(walk, "fields within their message", f"field {number} up to byte {at} of {end}")
        yield number, wire, value, length


def _varint(walk: _Walk, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = walk.data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise _error(walk, "a protobuf number", f"none at byte {at}")


def _add_dimensions(walk: _Walk, dims: list[int], wire: int, value: int, length: int) -> None:
    """Adds one dimension, or as many as are packed into `length` bytes from `value`."""
    at, end = (value, value + length) if wire == _BYTES else (0, 0)
    dims += [] if wire == _BYTES else [value]
    while at < end and len(dims) <= _MAX_RANK:
        dimension, at = _varint(walk, at, end)
        dims.append(dimension)
    if len(dims) > _MAX_RANK:
        raise _error(walk, f"a tensor of at most {_MAX_RANK} dimensions", "more")


def _spend_field(walk: _Walk) -> None:
    walk.fields_left -= 1
    if walk.fields_left < 0:
        raise _error(walk, f"at most {MAX_FIELDS} fields", "more")


def _text(walk: _Walk, wire: int, at: int, length: int) -> str:
    if wire != _BYTES or length > _MAX_NAME_BYTES:
        raise _error(walk, f"a name of at most {_MAX_NAME_BYTES} bytes", f"{length} bytes")
    return bytes(walk.data[at : at + length]).decode("utf-8", errors="backslashreplace")


def _need_bytes(walk: _Walk, wire: int, message: str, number: int) -> None:
    if wire != _BYTES:
        raise _error(walk, f"field {number} of {message} as a message", f"wire type {wire}")


def _error(walk: _Walk, expected: str, got: str) -> UserError:
    return UserError(walk.where, expected=expected, got=got, fix=_REBUILD)
