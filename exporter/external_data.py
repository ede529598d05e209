"""The data file beside an ONNX model: weights appended one at a time, each at an offset that can be mapped."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch

from dexport.errors import Failure
from dexport.passes.graph import Weight

_PAGE = 4096  # large tensors start on a page, so that a runtime can map them
_LINE = 64  # small ones on a cache line
_LARGE_BYTES = 1 << 16


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: byte offset and length."""

    offset: int
    length: int


class WeightFile:
    """An append-only data file; equal weights (same origin, shape and dtype) are written once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("wb")
        self._by_origin: dict[tuple[str, tuple[int, ...], torch.dtype], Place] = {}
        self._by_digest: dict[bytes, Place] = {}

    def __enter__(self) -> WeightFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; an empty one is removed."""
        self._file.close()
        if self.path.exists() and self.path.stat().st_size == 0:
            self.path.unlink()

    def flush(self) -> None:
        """Makes what was written readable for others."""
        self._file.flush()

    def put(self, weight: Weight) -> Place:
        """Reads the weight and appends it, unless the same one is here already.

        Raises:
            Failure: the source gives another shape or dtype than it declared, or NaN or Inf.
        """
        key = (weight.origin, weight.shape, weight.dtype)
        if key not in self._by_origin:
            tensor = weight.load()
            check_weight(weight, tensor)
            self._by_origin[key] = self._append(memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy()))  # type: ignore[arg-type]
        return self._by_origin[key]

    def put_bytes(self, data: bytes) -> Place:
        """Appends raw bytes (a computed constant), unless equal ones are here already."""
        digest = hashlib.sha256(data).digest()
        if digest not in self._by_digest:
            self._by_digest[digest] = self._append(memoryview(data))
        return self._by_digest[digest]

    def _append(self, data: memoryview) -> Place:
        alignment = _PAGE if data.nbytes >= _LARGE_BYTES else _LINE
        offset = -(-self._file.tell() // alignment) * alignment
        self._file.seek(offset)
        self._file.write(data)
        return Place(offset, data.nbytes)


def check_weight(weight: Weight, tensor: torch.Tensor) -> None:
    """Refuses a tensor that is not what was declared, or that is not finite.

    Raises:
        Failure: shape, dtype, NaN or Inf.
    """
    if tuple(tensor.shape) != weight.shape or tensor.dtype != weight.dtype:
        wanted, got = f"a tensor {weight.shape} {weight.dtype}", f"{tuple(tensor.shape)} {tensor.dtype}"
        raise Failure(weight.origin, expected=wanted, got=got, fix="check that the checkpoint belongs to this configuration")
    if not tensor.is_floating_point():
        return
    finite = torch.isfinite(tensor.float() if tensor.itemsize == 1 else tensor)  # torch knows no isfinite of float8
    if not bool(finite.all()):
        bad = int((~finite).sum())
        raise Failure(weight.origin, expected="finite weights", got=f"{bad} NaN or Inf values", fix="repair or re-download the checkpoint")
