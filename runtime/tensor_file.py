"""Reads a safetensors file from memory without copying it: tables and golden values, mapped from the bundle.

Layout (huggingface/safetensors, README, "Format"): 8 bytes little-endian N, N bytes of JSON
{name: {dtype, shape, data_offsets: [begin, end]}}, then the data. The library's own reader copies what it reads from
memory, and takes a path otherwise, which the inside of a `.dxb` does not have.
"""

import json
import math
from typing import Any

import numpy as np

from dexport.errors import UserError
from dexport.runtime.strict_json import parse_json, shown

MAX_HEADER_BYTES = 4 << 20
_MAX_DIMENSIONS = 8
_DTYPES: dict[str, str] = {
    "BOOL": "?",
    "I8": "i1",
    "U8": "u1",
    "I16": "<i2",
    "U16": "<u2",
    "I32": "<i4",
    "U32": "<u4",
    "I64": "<i8",
    "U64": "<u8",
    "F16": "<f2",
    "F32": "<f4",
    "F64": "<f8",
    "BF16": "<u2",  # numpy has none: the bits, as the port that takes them says bfloat16
    "F8_E4M3": "u1",
}


def tensors_from_bytes(data: np.ndarray[Any, np.dtype[np.uint8]], where: str) -> dict[str, np.ndarray[Any, Any]]:
    """Views of all tensors in a safetensors file.

    Args:
        data: uint8 [bytes of the file]; stays referenced by the result.
        where: the file's name for errors.

    Returns:
        Read-only where `data` is; bfloat16 comes as its bits in uint16, float8 as its bits in uint8.

    Raises:
        UserError: the header is malformed, or tensors overlap, leave gaps or do not fit the file.
    """
    if data.size < 8:
        raise _bad(where, "a header of at least 8 bytes", f"{data.size} bytes")
    header_bytes = int.from_bytes(data[:8].tobytes(), "little")
    if header_bytes > min(data.size - 8, MAX_HEADER_BYTES):
        raise _bad(where, f"a header of at most {min(data.size - 8, MAX_HEADER_BYTES)} bytes", f"{header_bytes}")
    header = parse_json(data[8 : 8 + header_bytes].tobytes(), where, max_bytes=MAX_HEADER_BYTES)
    if not isinstance(header, dict):
        raise _bad(where, "a JSON object as header", shown(header))
    header.pop("__metadata__", None)
    body = data[8 + header_bytes :]
    result: dict[str, np.ndarray[Any, Any]] = {}
    end = 0
    for name, entry in sorted(header.items(), key=lambda item: _begin(item[1])):
        place = f"{where}: {shown(name)}"
        dtype, shape, begin, next_end = _checked(entry, place)
        if begin != end or next_end > body.size:
            raise _bad(place, f"data from byte {end}, at most to byte {body.size}", f"{begin} to {next_end}")
        try:
            result[name] = body[begin:next_end].view(dtype).reshape(shape)
        except ValueError:  # no elements, and dimensions beyond what numpy counts
            raise _bad(place, "a shape that numpy can hold", f"{shape}") from None
        end = next_end
    if end != body.size:
        raise _bad(where, f"{end} bytes of data", f"{body.size}")
    return result


def _begin(entry: Any) -> int:
    """Where a tensor's data begins, for sorting; anything malformed sorts first and is refused by `_checked`."""
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if isinstance(offsets, list) and len(offsets) == 2 and all(type(offset) is int for offset in offsets):
        return 2 * int(offsets[0]) + int(offsets[1] > offsets[0])  # an empty tensor before the one that begins where it does
    return -1


def _checked(entry: Any, place: str) -> tuple[np.dtype[Any], list[int], int, int]:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _bad(place, "the keys dtype, shape and data_offsets", shown(json.dumps(entry, separators=(",", ":"))))
    name, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(name, str) or name not in _DTYPES:
        raise _bad(place, f"a dtype of {', '.join(_DTYPES)}", shown(name))
    if not _counts(shape) or len(shape) > _MAX_DIMENSIONS or not _counts(offsets) or len(offsets) != 2:
        raise _bad(place, "lists of whole numbers", f"shape {shown(repr(shape))}, data_offsets {shown(repr(offsets))}")
    dtype = np.dtype(_DTYPES[name])
    if offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
        raise _bad(place, f"{math.prod(shape) * dtype.itemsize} bytes for {name} {shape}", f"{offsets[1] - offsets[0]}")
    return dtype, shape, offsets[0], offsets[1]


def _counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 53 for value in values)


def _bad(where: str, expected: str, got: str) -> UserError:
    return UserError(where, expected=expected, got=got, fix="get the bundle again or rebuild it")
