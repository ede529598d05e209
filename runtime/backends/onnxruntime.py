"""ONNX Runtime on the CPU or on CUDA: runs ONNX files with external data."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dexport.errors import Failure, UserError

Array = npt.NDArray[Any]
_CPUINFO = Path("/proc/cpuinfo")
_PROVIDERS = {"onnxruntime-cpu": "CPUExecutionProvider", "onnxruntime-cuda": "CUDAExecutionProvider"}


class OnnxRuntimeEngine:
    """One component: input name -> array in, output name -> array out.

    Args:
        path: the ONNX file; its external data lies beside it.
        backend: "onnxruntime-cpu" or "onnxruntime-cuda".
        name: for errors.
    """

    def __init__(self, path: Path, backend: str, name: str) -> None:
        runtime = _onnxruntime(backend)
        provider = _PROVIDERS[backend]
        available = runtime.get_available_providers()
        if provider not in available:
            fix = "pip install 'dexport[onnxruntime-gpu]' on a machine with an NVIDIA driver"
            raise UserError(name, expected=provider, got=f"only {', '.join(available)}", fix=fix)
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        for key, value in session_entries(path).items():
            options.add_session_config_entry(key, value)
        if threads := os.environ.get("DEXPORT_THREADS"):
            options.intra_op_num_threads = int(threads)
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=[provider])
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
            raise Failure(name, expected="a model that ONNX Runtime loads", got=reason, fix="rebuild the bundle") from error
        self._outputs = [output.name for output in self._session.get_outputs()]

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Runs the component; the arrays that it returns belong to the caller."""
        contiguous = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        return dict(zip(self._outputs, self._session.run(self._outputs, contiguous)))

    def close(self) -> None:
        """Frees the session."""
        self._session = None


def session_entries(path: Path) -> dict[str, str]:
    """Configuration that a quantized model needs; nothing for others.

    On x86 without VNNI the product of uint8 and int8 saturates in 16 bits, so int8 weights are turned to uint8 there; with VNNI or AMX
    nothing saturates, and that would only be slow. And a MatMul whose bias makes it a Gemm has no int8 form (measured: it runs in
    fp32, 8 times slower).
    """
    if b"QuantizeLinear" not in path.read_bytes():  # a few hundred KB: weights lie beside it
        return {}
    saturates = not sums_int8_in_32_bits(_CPUINFO.read_text() if _CPUINFO.exists() else "")
    return {"session.x64quantprecision": str(int(saturates)), "optimization.disable_specified_optimizers": "MatMulAddFusion"}


def sums_int8_in_32_bits(cpuinfo: str) -> bool:
    """Whether the text of /proc/cpuinfo names an instruction that does; where there is no such text, the answer is no."""
    return any(flag in cpuinfo.split() for flag in ("avx_vnni", "avx512_vnni", "amx_int8"))


def _onnxruntime(backend: str) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        extra = "onnxruntime" if backend == "onnxruntime-cpu" else "onnxruntime-gpu"
        raise UserError(
            f"backend {backend}", expected="onnxruntime", got="it is not installed", fix=f"pip install 'dexport[{extra}]'"
        ) from error
    return onnxruntime
