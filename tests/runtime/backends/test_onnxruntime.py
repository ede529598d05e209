"""ONNX Runtime runs files with external data; what it lacks is named."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from dexport.errors import Failure, UserError
from dexport.runtime.backends import onnxruntime as onnxruntime_backend
from dexport.runtime.backends.onnxruntime import OnnxRuntimeEngine, session_entries
from tests.runtime.sample_bundle import onnx_with_external_weights


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """y = x + w."""
    (tmp_path / "loop.onnx").write_bytes(onnx_with_external_weights())
    (tmp_path / "loop.bin").write_bytes(np.arange(6, dtype=np.float32).tobytes())
    return tmp_path / "loop.onnx"


def test_external_weights_are_found(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEXPORT_THREADS", "1")
    engine = OnnxRuntimeEngine(model, "onnxruntime-cpu", "loop")
    x = np.asfortranarray(np.ones((2, 3), np.float32))
    first = engine({"x": x})["y"]
    engine({"x": x * 5})
    np.testing.assert_array_equal(first, np.arange(6, dtype=np.float32).reshape(2, 3) + 1)
    engine.close()


def test_what_cannot_be_loaded_is_a_failure(model: Path) -> None:
    model.write_bytes(b"nonsense")
    with pytest.raises(Failure, match=r"bundle: loop: expected a model that ONNX Runtime loads, got .*; rebuild the bundle"):
        OnnxRuntimeEngine(model, "onnxruntime-cpu", "bundle: loop")


def test_a_missing_provider_or_package_is_named(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        message = r"loop: expected CUDAExecutionProvider, got only .*CPUExecutionProvider; pip install 'dexport\[onnxruntime-gpu\]'"
        with pytest.raises(UserError, match=message):
            OnnxRuntimeEngine(model, "onnxruntime-cuda", "loop")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for backend, extra in (("onnxruntime-cpu", "onnxruntime"), ("onnxruntime-cuda", "onnxruntime-gpu")):
        message = rf"backend {backend}: expected onnxruntime, got it is not installed; pip install 'dexport\[{extra}\]'"
        with pytest.raises(UserError, match=message):
            OnnxRuntimeEngine(model, backend, "loop")


@pytest.mark.parametrize(("flags", "precise"), [("sse4_2 avx2 avx512f", "1"), ("avx2 avx_vnni", "0"), ("avx512_vnni", "0"), (None, "1")])
def test_exact_products_are_paid_for_only_where_others_saturate(
    flags: str | None, precise: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plain.onnx").write_bytes(b"MatMul")
    (tmp_path / "int8.onnx").write_bytes(b"MatMul QuantizeLinear")
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: fpu {flags} sha_ni\n")
    monkeypatch.setattr(onnxruntime_backend, "_CPUINFO", tmp_path / "cpuinfo")
    assert session_entries(tmp_path / "plain.onnx") == {}
    assert session_entries(tmp_path / "int8.onnx")["session.x64quantprecision"] == precise
