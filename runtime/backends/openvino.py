"""OpenVINO on the CPU: runs IR whose weights stay mapped from the bundle until the plugin has packed them.

The plugin is fastest with static shapes, so a model is compiled for each combination of input shapes that is asked for, once.

Quantized models: on x86 without VNNI or AMX the plugin's int8 GEMM adds pairs of products in 16 bits and saturates; measured on
AVX2, results are wrong by 20 to 30 % of their range, and slower than in fp32. So a small GEMM with large numbers is tried first,
and where it comes out wrong the integers are multiplied in fp32, which is exact.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dexport.errors import Failure, UserError
from dexport.runtime.builders.builder import Layer

Array = npt.NDArray[Any]
_QUANTIZED = b'type="FakeQuantize"'
_PRECISIONS = {"fp32": "f32", "fp16": "f32", "bf16": "bf16"}  # fp16 is a storage format on CPUs: they compute it in fp32


_FORMATS = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "i8": "int8", "u8": "int8"}
_MULTIPLIES = re.compile("FullyConnected|MatMul|Convolution|Attention")


class OpenVinoEngine:
    """One component: input name -> array in, output name -> array out.

    Args:
        xml: the topology, as bytes.
        weights: uint8, mapped copy-on-write, because OpenVINO refuses read-only memory; it is shared, not copied.
        precision: of the bundle ("fp32", "fp16", "bf16"). It is always handed to OpenVINO, which would silently choose bf16 otherwise.
        folder: for compiled models, or None.
        name: for errors.
    """

    def __init__(self, xml: bytes, weights: Array, precision: str, folder: Path | None, name: str) -> None:
        openvino = _openvino()
        self._name = name
        self._weights = weights
        self._core = openvino.Core()
        self._properties: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _PRECISIONS[precision],
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",  # else 4-bit weights would get 8-bit activations that nobody asked for
        }
        if folder is not None:
            self._properties["CACHE_DIR"] = str(folder)
        if _QUANTIZED in xml and not int8_is_exact():
            self._properties["LP_TRANSFORMS_MODE"] = False
        if threads := os.environ.get("DEXPORT_THREADS"):
            self._properties["INFERENCE_NUM_THREADS"] = threads
        self._xml = xml
        self._model: Any = self._read()  # until it is compiled; for further shapes it is read again
        self._outputs = [output.get_any_name() for output in self._model.outputs]
        self._compiled: dict[tuple[tuple[int, ...], ...], Any] = {}

    def _read(self) -> Any:
        try:
            return self._core.read_model(self._xml, _openvino().Tensor(self._weights, shared_memory=True))
        except Exception as error:
            raise Failure(self._name, expected="an OpenVINO model", got=_reason(error), fix="rebuild the bundle") from error

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Runs the component; the arrays that it returns belong to the caller."""
        request = self._request(inputs)
        results = request.infer(dict(inputs), share_inputs=True, share_outputs=False)
        return {name: np.asarray(results[name]) for name in self._outputs}

    def _request(self, inputs: Mapping[str, Array]) -> Any:
        key = tuple(inputs[name].shape for name in sorted(inputs))
        if key not in self._compiled:
            model, self._model = self._model or self._read(), None
            try:
                model.reshape({name: list(array.shape) for name, array in inputs.items()})
                self._compiled[key] = self._core.compile_model(model, "CPU", self._properties).create_infer_request()
                _forget_pages(self._weights)
            except Exception as error:
                shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
                raise Failure(self._name, expected=f"OpenVINO to compile {shapes}", got=_reason(error), fix="rebuild the bundle") from error
        return self._compiled[key]

    def layers(self) -> list[Layer]:
        """What the plugin made of the model for the shapes that have been asked for."""
        return [
            _layer(op.get_rt_info())
            for request in self._compiled.values()
            for op in request.get_compiled_model().get_runtime_model().get_ops()
        ]

    def close(self) -> None:
        """Frees the compiled models."""
        self._compiled.clear()
        self._model = None


def _forget_pages(weights: Array) -> None:
    """Gives the memory of a mapped file's pages back: the plugin has packed what it needs, and what it still reads comes from the file."""
    mapped: Any = weights
    while isinstance(mapped, np.ndarray | memoryview):
        mapped = mapped.base if isinstance(mapped, np.ndarray) else mapped.obj
    if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def _layer(facts: Any) -> Layer:
    """An operation of the compiled model, from what the plugin notes of it under the keys of OpenVINO's exec_model_info.

    What it computes in ends the name of its primitive ("brgemm_avx2_f32"); `runtimePrecision` may be that of its weights alone.
    """
    kind = str(facts["layerType"].value)
    precision = str(facts["primitiveType"].value).rpartition("_")[2].lower()
    nodes = frozenset(str(facts["originalLayersNames"].value).split(","))
    return Layer(nodes, kind, frozenset({_FORMATS.get(precision, precision)}), _MULTIPLIES.search(kind) is not None)


def _openvino() -> Any:
    try:
        import openvino
    except ImportError as error:
        fix = "pip install 'dexport[openvino]'"
        raise UserError("backend openvino", expected="the openvino package", got="it is not installed", fix=fix) from error
    return openvino


@cache
def int8_is_exact() -> bool:
    """Whether int8 GEMMs on this processor give what exact arithmetic gives, found by one whose 16-bit partial sums would overflow."""
    openvino = _openvino()
    ops, size = openvino.opset13, 64
    x = ops.parameter([size, size], np.float32)
    low, high = np.float32(-128), np.float32(127)
    rounded = ops.fake_quantize(x, low, high, low, high, 256)
    weight = ops.convert(ops.constant(np.full((size, size), 127, np.int8)), np.float32)
    model = openvino.Model([ops.matmul(rounded, ops.multiply(weight, np.float32(1)), False, True)], [x])
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    result = compiled({0: np.full((size, size), 127, np.float32)})[0]
    return bool(np.allclose(result, size * 127.0 * 127.0, rtol=1e-5))


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1]
