"""Checkpoints as streams: safetensors files whose tensors are read one at a time, by position, never mapped whole.

Reading by position instead of mapping keeps the resident memory at the tensor being read: mapped pages would count and stay.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dexport.errors import UserError
from dexport.passes.graph import Weight

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
_LARGEST_HEADER_BYTES = 100 << 20  # the format's own limit


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: absolute byte offset and length."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    def read(self) -> torch.Tensor:
        """The tensor as stored, in memory of its own."""
        data = torch.empty(self.nbytes, dtype=torch.uint8)  # not a bytearray, which would be filled with zeros before
        with self.file.open("rb", buffering=0) as file:
            file.seek(self.offset)
            view = memoryview(data.numpy())  # type: ignore[arg-type]
            done = 0
            while done < self.nbytes:
                count = file.readinto(view[done:])
                if not count:
                    raise _truncated(self.file, self.offset + self.nbytes, self.offset + done)
                done += count
        return data.view(self.dtype).reshape(self.shape)


Checkpoint = Mapping[str, Stored]


def open_checkpoint(directory: Path) -> Checkpoint:
    """The tensors of a component's folder: one safetensors file, or shards with an index.

    Raises:
        UserError: no safetensors, a shard is missing or truncated, or a header is unreadable.
    """
    indices = sorted(directory.glob("*.safetensors.index*.json"), key=lambda path: len(path.name))  # "...index.fp16.json" is a variant
    if indices:
        files = [directory / name for name in _listed(indices[0])]
        for file in files:
            if not file.exists():
                raise UserError(
                    str(file), expected=f"a shard that {indices[0].name} lists", got="no such file", fix="download the missing shard"
                )
    else:
        files = _single(directory)
    stored: dict[str, Stored] = {}
    for file in files:
        stored.update(read_header(file))
    return stored


def _listed(index: Path) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(str(index), expected="an index with a weight_map", got="something else", fix="download the file again") from error


def _single(directory: Path) -> list[Path]:
    found = sorted(directory.glob("*.safetensors"))
    plain = [f for f in found if f.name.count(".") == 1]  # "model.fp16.safetensors" is a variant of "model.safetensors"
    if not found:
        others = sorted(p.name for p in directory.glob("*.bin"))
        got = f"only {', '.join(others)}" if others else "no weights"
        raise UserError(
            str(directory), expected="*.safetensors weights", got=got, fix="save the pipeline with save_pretrained(safe_serialization=True)"
        )
    return plain[:1] or found[:1]


def read_header(file: Path) -> dict[str, Stored]:
    """The directory of one safetensors file, checked against the file's size.

    Raises:
        UserError: the file is truncated or is not safetensors.
    """
    size = file.stat().st_size
    with file.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if length > min(size, _LARGEST_HEADER_BYTES):
            raise UserError(
                str(file),
                expected="a safetensors file",
                got=f"a header of {length} bytes in a file of {size}",
                fix="download the file again",
            )
        content = handle.read(length)
    try:
        header = {name: entry for name, entry in json.loads(content).items() if name != "__metadata__"}
        stored = {name: _stored(file, entry, 8 + length) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"an unreadable header ({str(error) or type(error).__name__})"
        raise UserError(str(file), expected="a safetensors file", got=reason, fix="download the file again") from error
    for tensor in stored.values():
        if tensor.offset + tensor.nbytes > size:
            raise _truncated(file, tensor.offset + tensor.nbytes, size)
    return stored


def _stored(file: Path, entry: dict[str, Any], start: int) -> Stored:
    dtype, shape = _DTYPES[entry["dtype"]], tuple(int(size) for size in entry["shape"])
    begin, end = (int(offset) for offset in entry["data_offsets"])
    if begin < 0 or end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{end - begin} bytes for {list(shape)} of {entry['dtype']}")
    return Stored(file, dtype, shape, start + begin, end - begin)


def _truncated(file: Path, expected: int, got: int) -> UserError:
    return UserError(str(file), expected=f"at least {expected} bytes", got=f"{got}", fix="the file is truncated: download it again")


def match_names(parameters: Iterable[str], checkpoint: Checkpoint, tied: Mapping[str, str], where: str) -> dict[str, str]:
    """Parameter name -> stored name.

    Checkpoints of other library versions carry the same names with a prefix more or less ("text_model."); tied parameters are stored once.

    Raises:
        UserError: a parameter is in the checkpoint under no name.
    """
    names = list(parameters)
    prefixes = {""} | {key.split(".", 1)[0] + "." for key in checkpoint} | {"-" + name.split(".", 1)[0] + "." for name in names}

    def renamed(name: str, prefix: str) -> str:
        return name.removeprefix(prefix[1:]) if prefix.startswith("-") else prefix + name

    best = max(sorted(prefixes), key=lambda prefix: sum(renamed(name, prefix) in checkpoint for name in names))
    matched = {}
    for name in names:
        candidates = [renamed(name, best), name, *(renamed(other, best) for other in _ties(name, tied))]
        found = next((c for c in candidates if c in checkpoint), None)
        if found is None:
            raise UserError(
                where,
                expected=f"a tensor named {name}",
                got=f"{len(checkpoint)} tensors without it",
                fix="check that weights and config.json belong together",
            )
        matched[name] = found
    return matched


def _ties(name: str, tied: Mapping[str, str]) -> list[str]:
    return [b if name == a else a for a, b in tied.items() if name in (a, b)]


def weight_of(stored: Stored, origin: str, shape: tuple[int, ...], dtype: torch.dtype) -> Weight:
    """A stored tensor as a Weight of the wanted dtype.

    Raises:
        UserError: the shape differs from what the configuration says.
    """
    if stored.shape != shape:
        raise UserError(
            origin, expected=f"shape {shape} (config.json)", got=f"{stored.shape}", fix="check that weights and config.json belong together"
        )
    return Weight(shape, dtype, lambda: stored.read().to(dtype), f"{stored.file}:{origin}:{dtype}")
