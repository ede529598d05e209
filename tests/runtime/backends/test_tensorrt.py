import ast
import ctypes
import importlib.util
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dexport.errors import DexportError, Failure, UserError
from dexport.runtime.backends import tensorrt as backend
from dexport.runtime.backends.cuda_driver import CudaDevice
from dexport.runtime.backends.tensorrt import Range, Tensor, TensorRTEngine, checked, profile_for
from dexport.targets.tensorrt import RTX_COMPUTE_CAPABILITIES


def has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


@pytest.fixture
def device() -> CudaDevice:
    try:
        return CudaDevice()
    except DexportError as error:
        pytest.skip(f"needs an NVIDIA GPU: {error}")


# The API that is called, against the real package.


def test_every_call_exists_in_the_package() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx (pip install 'dexport[rtx]')")
    classes = {"_runtime": trt.Runtime, "_engine": trt.ICudaEngine, "_context": trt.IExecutionContext, "_cache": trt.IRuntimeCache}
    used = {
        (node.value.attr, node.attr)
        for node in ast.walk(ast.parse(Path(backend.__file__).read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute) and node.value.attr in classes
    }
    assert len(used) > 15
    assert [f"{owner}.{name}" for owner, name in used if not hasattr(classes[owner], name)] == []
    assert hasattr(trt.IRuntimeConfig, "create_runtime_cache") and hasattr(trt.IRuntimeConfig, "set_runtime_cache")


@pytest.mark.parametrize(
    ("owner", "method", "signature"),
    [
        ("IExecutionContext", "execute_async_v3", "stream_handle: typing.SupportsInt) -> bool"),
        (
            "IExecutionContext",
            "set_optimization_profile_async",
            "profile_index: typing.SupportsInt, stream_handle: typing.SupportsInt)",
        ),
        ("IExecutionContext", "set_input_shape", "name: str, shape: tuple) -> bool"),
        ("IExecutionContext", "set_tensor_address", "name: str, memory: typing.SupportsInt) -> bool"),
        ("IExecutionContext", "infer_shapes", ") -> list[str]"),
        ("ICudaEngine", "get_tensor_profile_shape", "name: str, profile_index: typing.SupportsInt) -> list["),
        ("ICudaEngine", "create_execution_context", "runtime_config: "),
        ("Runtime", "deserialize_cuda_engine", "serialized_engine: typing_extensions.Buffer)"),
        ("IRuntimeCache", "deserialize", "blob: typing_extensions.Buffer) -> bool"),
    ],
)
def test_signatures_are_those_that_are_called(owner: str, method: str, signature: str) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx (pip install 'dexport[rtx]')")
    assert signature in getattr(getattr(trt, owner), method).__doc__


# What can go wrong before an engine runs.


def test_missing_package(tmp_path: Path) -> None:
    if importlib.util.find_spec("tensorrt") is not None:
        pytest.skip("the tensorrt package is installed")
    with pytest.raises(UserError, match=r"^loop: expected the package tensorrt, .*; run: pip install 'dexport\[tensorrt\]'$"):
        TensorRTEngine(tmp_path / "plan", "tensorrt", "loop")


@pytest.mark.skipif(has_driver(), reason="this machine has an NVIDIA driver")
def test_no_driver(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx (pip install 'dexport[rtx]')")
    with pytest.raises(UserError, match=r"^CUDA: expected an NVIDIA GPU, got no NVIDIA driver \(libcuda.so.1 not found\); choose"):
        TensorRTEngine(tmp_path / "plan", "tensorrt-rtx", "loop")


EXPECTED = {"x": Tensor(np.dtype(np.float16), (-1, 4)), "s": Tensor(np.dtype(np.float32), ())}


def test_inputs_become_contiguous_and_keep_their_shape() -> None:
    x = np.arange(8, dtype=np.float16).reshape(4, 2).T
    arrays = checked("loop", EXPECTED, {"s": np.array(2, np.float32), "x": x})
    assert all(array.flags.c_contiguous for array in arrays.values())
    assert list(arrays) == ["x", "s"] and arrays["s"].shape == () and np.array_equal(arrays["x"], x)


def test_wrong_inputs() -> None:
    with pytest.raises(Failure, match=r"^loop: expected inputs s, x, got x; rebuild the bundle, its program and engine disagree$"):
        checked("loop", EXPECTED, {"x": np.zeros((1, 4), np.float16)})
    with pytest.raises(Failure, match=r"^loop: expected float16 for x, got float32; rebuild"):
        checked("loop", EXPECTED, {"x": np.zeros((1, 4), np.float32), "s": np.array(2, np.float32)})


def test_no_profile_fits() -> None:
    profiles: list[dict[str, Range]] = [{"x": ((1, 4), (2, 4))}, {"x": ((8, 4), (8, 4))}]
    with pytest.raises(UserError, match=r"^loop: expected x \[1, 4\] to \[2, 4\] or x \[8, 4\] to \[8, 4\], got x \[3, 4\]; rebuild"):
        profile_for("loop", profiles, {"x": (3, 4)})
    with pytest.raises(UserError):
        profile_for("loop", profiles, {"x": (2, 4, 1)})


ranges = st.tuples(st.integers(1, 9), st.integers(0, 9)).map(lambda r: ((r[0],), (r[0] + r[1],)))


@given(st.lists(ranges, min_size=1, max_size=5), st.integers(1, 20))
def test_the_narrowest_fitting_profile_is_chosen(found: list[Range], size: int) -> None:
    profiles = [{"x": one} for one in found]
    widths = [high[0] - low[0] for low, high in found if low[0] <= size <= high[0]]
    if not widths:
        with pytest.raises(UserError):
            profile_for("loop", profiles, {"x": (size,)})
        return
    low, high = found[profile_for("loop", profiles, {"x": (size,)})]
    assert low[0] <= size <= high[0] and high[0] - low[0] == min(widths)


# On a GPU.


@pytest.mark.gpu
def test_an_engine_computes_what_its_onnx_says(device: CudaDevice, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx (pip install 'dexport[rtx]')")
    onnxruntime = pytest.importorskip("onnxruntime")
    if device.sm not in RTX_COMPUTE_CAPABILITIES:
        pytest.skip(f"TensorRT-RTX does not support SM{device.sm}")
    from dexport.exporter.engines.tensorrt_rtx import build_engine
    from tests.exporter.engines.rtx_models import TOKENS, WIDTH, block

    def shape(batch: int) -> tuple[int, ...]:
        return batch, TOKENS, WIDTH

    model, plan, cache = block(tmp_path / "b.onnx", batch="n"), tmp_path / "b.plan", tmp_path / "kernels.cache"
    build_engine(model, plan, sm=(device.sm,), profiles=[{"x": (shape(1),) * 3}, {"x": (shape(1), shape(2), shape(4))}])
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    for _ in range(2):  # the second time with the kernel cache of the first
        engine = TensorRTEngine(plan, "tensorrt-rtx", "loop", sm=(device.sm,), cache=cache)
        assert engine.inputs == {"x": Tensor(np.dtype(np.float16), (-1, TOKENS, WIDTH))}
        for batch in (1, 4, 2, 1):
            x = rng.standard_normal(shape(batch)).astype(np.float16)
            with ThreadPoolExecutor(1) as pool:  # another thread than the one that loaded the engine
                result = pool.submit(engine, {"x": x}).result()["y"]
            (expected,) = session.run(None, {"x": x})
            error = np.linalg.norm((result - expected).astype(np.float32)) / np.linalg.norm(expected.astype(np.float32))
            assert error < 5e-3
        engine.close()
        assert cache.stat().st_size > 0
    with pytest.raises(UserError, match=r"^loop: expected an engine for this GPU \(SM\d+\), got an engine for SM75; rebuild"):
        TensorRTEngine(plan, "tensorrt-rtx", "loop", sm=(75,) if device.sm != 75 else (80,))
