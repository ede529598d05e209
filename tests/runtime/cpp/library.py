"""The C interface of the C++ runtime through ctypes, as far as the tests need it; the fields are those of dexport.h, in order."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

_DTYPES = ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64")


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("dtype", ctypes.c_int),
        ("axes", ctypes.c_int32),
        ("shape", ctypes.c_int64 * 8),
        ("data", ctypes.c_void_p),
    ]


_ON_STEP = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_double, ctypes.POINTER(_Tensor))
_ON_LINE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_char_p)


class _Request(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("prompts", ctypes.POINTER(ctypes.c_char_p)),
        ("prompt_count", ctypes.c_size_t),
        ("negative_prompts", ctypes.POINTER(ctypes.c_char_p)),
        ("negative_prompt_count", ctypes.c_size_t),
        ("class_labels", ctypes.POINTER(ctypes.c_int64)),
        ("class_label_count", ctypes.c_size_t),
        ("pictures", ctypes.c_size_t),
        ("steps", ctypes.c_int64),
        ("height", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("guidance", ctypes.POINTER(ctypes.c_double)),
        ("seeds", ctypes.POINTER(ctypes.c_uint64)),
        ("seed_count", ctypes.c_size_t),
        ("noise", ctypes.c_int),
        ("latents", ctypes.POINTER(_Tensor)),
        ("buffers", ctypes.POINTER(_Tensor)),
        ("buffer_count", ctypes.c_size_t),
        ("want_latents", ctypes.c_int32),
        ("user", ctypes.c_void_p),
        ("on_step", _ON_STEP),
        ("on_trace", _ON_LINE),
        ("on_warning", _ON_LINE),
    ]


@dataclass
class Made:
    """What a run made and said."""

    pictures: npt.NDArray[np.uint8]
    latents: npt.NDArray[Any]
    steps: list[npt.NDArray[Any]] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


class CppError(Exception):
    """A status that is not 0, with its text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class CppPipeline:
    """A bundle that the C++ runtime has opened."""

    def __init__(self, library: Path, bundle: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        self._library.dexport_error.restype = ctypes.c_char_p
        self._library.dexport_result_seconds.restype = ctypes.c_double
        self._handle = ctypes.c_void_p()
        self._check(self._library.dexport_open(str(bundle).encode(), None, ctypes.byref(self._handle)))

    def __enter__(self) -> CppPipeline:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._library.dexport_close(self._handle)

    def run(self, prompts: Sequence[str] = (), *, components: Sequence[str] = (), **options: Any) -> Made:
        """Runs it; `options` are fields of the request, `components` those whose seconds are wanted."""
        request, made, kept = _Request(struct_size=ctypes.sizeof(_Request), want_latents=1), Made(np.empty(0, np.uint8), np.empty(0)), []

        def on_step(user: int, step: int, steps: int, timestep: float, latents: Any) -> int:
            made.steps.append(_array(latents.contents))
            return 0

        for name, values in {"prompts": prompts, **options}.items():
            if name in ("latents", "buffers"):
                tensors = (_Tensor * len(values))(*(_tensor(key, array) for key, array in values.items()))
                kept.append(values)
                setattr(request, name, tensors)
                if name == "buffers":
                    request.buffer_count = len(values)
            elif isinstance(values, list | tuple):
                kind = {"seeds": ctypes.c_uint64, "class_labels": ctypes.c_int64}.get(name, ctypes.c_char_p)
                items = [value.encode() if isinstance(value, str) else value for value in values]
                setattr(request, name, (kind * len(items))(*items))
                setattr(request, f"{name.removesuffix('s')}_count", len(items))
            elif name == "guidance":
                request.guidance = ctypes.pointer(ctypes.c_double(values))
            else:
                setattr(request, name, values)
        request.on_step = _ON_STEP(on_step)
        request.on_trace = _ON_LINE(lambda _, line: made.trace.append(line.decode()))
        request.on_warning = _ON_LINE(lambda _, line: made.warnings.append(line.decode()))
        result = ctypes.c_void_p()
        self._check(self._library.dexport_run(self._handle, ctypes.byref(request), ctypes.byref(result)))
        tensor = _Tensor()
        self._check(self._library.dexport_result_pictures(result, ctypes.byref(tensor)))
        made.pictures = _array(tensor)
        self._check(self._library.dexport_result_latents(result, ctypes.byref(tensor)))
        made.latents = _array(tensor)
        made.seconds = {name: self._library.dexport_result_seconds(result, name.encode()) for name in components}
        made.seconds["total"] = self._library.dexport_result_seconds(result, None)
        self._library.dexport_result_free(result)
        return made

    def _check(self, status: int) -> None:
        if status != 0:
            raise CppError(status, self._library.dexport_error().decode())


def _array(tensor: _Tensor) -> npt.NDArray[Any]:
    """A copy of a tensor."""
    shape, dtype = tuple(tensor.shape[: tensor.axes]), np.dtype(_DTYPES[tensor.dtype])
    count = int(np.prod(shape)) * dtype.itemsize
    return np.frombuffer(ctypes.string_at(tensor.data, count), dtype).reshape(shape)


def _tensor(name: str, array: npt.NDArray[Any]) -> _Tensor:
    """A view of a contiguous array, which must stay alive."""
    shape = (ctypes.c_int64 * 8)(*array.shape)
    return _Tensor(name.encode(), _DTYPES.index(array.dtype.name), array.ndim, shape, array.ctypes.data)
