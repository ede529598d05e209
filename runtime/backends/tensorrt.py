"""TensorRT and TensorRT-RTX: runs a serialized engine ("plan") on an NVIDIA GPU. The two share one Python API.

What has been executed: the error paths, the choice of a profile, and the names and signatures of every call that is made,
against the real TensorRT-RTX 1.7.1 package on a machine without a GPU. What has not: an inference. Tests marked `gpu` do it
where there is a GPU that TensorRT-RTX supports. Classic TensorRT (10.3 and later) is written against its documentation.
"""

from __future__ import annotations

import importlib
import mmap
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dexport.errors import DexportError, Failure, UserError
from dexport.runtime.backends.cuda_driver import CudaDevice
from dexport.runtime.backends.tensorrt_plugins import PluginLibrary, load_plugins

Array = npt.NDArray[Any]
Range = tuple[tuple[int, ...], tuple[int, ...]]
"""Smallest and largest shape of an input under one optimization profile."""

_MODULES = {"tensorrt": ("tensorrt", "tensorrt"), "tensorrt-rtx": ("tensorrt_rtx", "rtx")}  # backend -> module, extra


@dataclass(frozen=True)
class Tensor:
    """An input or output of an engine; a free size is -1, bfloat16 travels as its bits in uint16."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class TensorRTEngine:
    """One component: input name -> array in, output name -> array out.

    Calls may come from any thread and run one after the other: an engine has one execution context, because a context
    holds the activations, the largest memory after the weights.

    Args:
        path: the plan.
        backend: "tensorrt" or "tensorrt-rtx".
        name: for errors.
        sm: compute capabilities the plan was built for, if known; a GPU that is not among them is refused before loading.
        cache: file for the kernels that TensorRT-RTX compiles when an engine is first used on a machine, or None. Read if
            it is there and fits this machine, written by `close`.
        plugins: libraries that the engine may need.

    Attributes:
        inputs: the engine's inputs by name.
        outputs: its outputs by name.

    Raises:
        UserError: the package is missing, there is no NVIDIA driver or GPU, or plan or plugin are for another GPU or version.
        Failure: the engine needs what this runtime does not have, such as inputs in FP8; TensorRT does not take a plugin.
    """

    def __init__(
        self,
        path: Path,
        backend: str,
        name: str,
        *,
        sm: Sequence[int] = (),
        cache: Path | None = None,
        plugins: Sequence[PluginLibrary] = (),
    ) -> None:
        trt = _module(backend, name)
        self._name, self._cache_path = name, cache
        self._lock = threading.Lock()
        self._device: Any = CudaDevice()
        self._buffers: dict[str, tuple[int, int]] = {}  # tensor -> address, bytes
        self._runtime: Any = None
        self._engine: Any = None
        self._context: Any = None
        self._cache: Any = None
        try:
            if sm and self._device.sm not in sm:
                raise self._misfit(f"an engine for {', '.join(f'SM{one}' for one in sm)}")
            self._log = _log(trt)
            self._runtime = trt.Runtime(self._log)
            load_plugins(self._runtime, plugins, sm=self._device.sm, version=trt.__version__, errors=self._log.errors)
            self._engine = self._loaded(path)
            names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
            self.inputs = {n: self._tensor(trt, n) for n in names if self._engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT}
            self.outputs = {n: self._tensor(trt, n) for n in names if n not in self.inputs}
            self._profiles = [self._ranges(i) for i in range(self._engine.num_optimization_profiles)]
            self._context = self._new_context()
        except BaseException:
            self._free()
            raise

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Runs the component; the arrays that it returns belong to the caller."""
        with self._lock:
            self._device.use()
            self._log.errors.clear()
            arrays = checked(self._name, self.inputs, inputs)
            self._select(profile_for(self._name, self._profiles, {n: a.shape for n, a in arrays.items()}))
            for name, array in arrays.items():
                self._do(self._context.set_input_shape(name, array.shape), f"shape {array.shape} for {name}")
                self._device.upload(array, self._bound(name, array.nbytes))
            unset = self._context.infer_shapes()
            self._do(not unset, f"shapes; missing: {', '.join(unset)}")
            results = {n: np.empty(tuple(self._context.get_tensor_shape(n)), t.dtype) for n, t in self.outputs.items()}
            addresses = {n: self._bound(n, array.nbytes) for n, array in results.items()}
            self._do(self._context.execute_async_v3(self._device.stream), "the start of the engine")
            for name, array in results.items():
                self._device.download(addresses[name], array)
            self._device.wait()
            return results

    def close(self) -> None:
        """Writes the kernel cache and frees context, engine and device memory."""
        with self._lock:
            if self._cache is not None and self._cache_path is not None:
                _write(self._cache_path, memoryview(self._cache.serialize()))
            self._free()

    def _free(self) -> None:
        self._context = self._cache = self._engine = self._runtime = None  # in this order: each needs the next
        if self._device is not None:
            self._device.use()
            for address, _ in self._buffers.values():
                self._device.free(address)
            self._device.close()
        self._buffers, self._device = {}, None

    def _loaded(self, path: Path) -> Any:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as plan:
            engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise self._misfit("; ".join(self._log.errors) or "a plan that does not load")
        return engine

    def _misfit(self, got: str) -> UserError:
        fix = "rebuild the bundle for this machine"
        return UserError(self._name, expected=f"an engine for this GPU (SM{self._device.sm})", got=" ".join(got.split()), fix=fix)

    def _tensor(self, trt: Any, name: str) -> Tensor:
        if self._engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
            raise self._unusable(f"{name}, which holds a shape, on the host")
        kind = self._engine.get_tensor_dtype(name)
        try:
            dtype = np.dtype(np.uint16 if kind == trt.DataType.BF16 else trt.nptype(kind))
        except TypeError as error:  # 8- and 4-bit floating-point formats
            raise self._unusable(f"{name} in {kind}") from error
        return Tensor(dtype, tuple(self._engine.get_tensor_shape(name)))

    def _unusable(self, got: str) -> Failure:
        fix = "export the component with fp16, bf16 or fp32 inputs and outputs"
        return Failure(self._name, expected="inputs and outputs that NumPy can hold, in GPU memory", got=got, fix=fix)

    def _ranges(self, profile: int) -> dict[str, Range]:
        ranges: dict[str, Range] = {}
        for name, tensor in self.inputs.items():
            if -1 in tensor.shape:
                low, _, high = self._engine.get_tensor_profile_shape(name, profile)
                ranges[name] = tuple(low), tuple(high)
            else:
                ranges[name] = tensor.shape, tensor.shape
        return ranges

    def _new_context(self) -> Any:
        if hasattr(self._engine, "create_runtime_config") and self._cache_path is not None:
            config = self._engine.create_runtime_config()
            self._cache = config.create_runtime_cache()
            if self._cache_path.exists():
                self._cache.deserialize(self._cache_path.read_bytes())  # says no to a cache from elsewhere: it is then rebuilt
            config.set_runtime_cache(self._cache)
            context = self._engine.create_execution_context(config)
        else:
            context = self._engine.create_execution_context()
        self._do(context is not None, "an execution context")
        return context

    def _select(self, profile: int) -> None:
        if self._context.active_optimization_profile != profile:
            self._do(self._context.set_optimization_profile_async(profile, self._device.stream), f"profile {profile}")
            self._device.wait()

    def _bound(self, name: str, size: int) -> int:
        """Address of a buffer of at least `size` bytes, told to the context."""
        address, room = self._buffers.get(name, (0, 0))
        if not address or room < size:
            if address:
                self._device.free(self._buffers.pop(name)[0])
            address = self._device.allocate(size)
            self._buffers[name] = address, size
        self._do(self._context.set_tensor_address(name, address), f"an address for {name}")
        return address

    def _do(self, done: bool, what: str) -> None:
        if not done:
            got = " ".join("; ".join(self._log.errors).split()) or "a refusal without a reason"
            raise Failure(self._name, expected=f"TensorRT to accept {what}", got=got, fix="rebuild the bundle for this machine")


def checked(component: str, expected: Mapping[str, Tensor], inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The inputs as contiguous arrays; names and types must be those of the engine.

    Raises:
        Failure: an input is missing, unknown or of another type.
    """
    if set(inputs) != set(expected):
        raise _wrong_input(component, f"inputs {', '.join(sorted(expected))}", ", ".join(sorted(inputs)) or "none")
    for name, tensor in expected.items():
        if inputs[name].dtype != tensor.dtype:
            raise _wrong_input(component, f"{tensor.dtype} for {name}", str(inputs[name].dtype))
    return {name: np.ascontiguousarray(inputs[name]).reshape(inputs[name].shape) for name in expected}


def profile_for(component: str, profiles: Sequence[Mapping[str, Range]], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The optimization profile that allows `shapes`; of several the narrowest, whose kernels are made for the fewest sizes.

    Raises:
        UserError: no profile allows these shapes.
    """
    fitting = [i for i, ranges in enumerate(profiles) if all(_within(shapes[name], ranges[name]) for name in ranges)]
    if not fitting:
        allowed = " or ".join(", ".join(f"{n} {list(low)} to {list(high)}" for n, (low, high) in p.items()) for p in profiles)
        got = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        raise UserError(component, expected=allowed, got=got, fix="rebuild the bundle with this size and batch")
    return min(fitting, key=lambda i: sum(b - a for low, high in profiles[i].values() for a, b in zip(low, high)))


def _within(shape: tuple[int, ...], allowed: Range) -> bool:
    low, high = allowed
    return len(shape) == len(low) and all(a <= size <= b for a, size, b in zip(low, shape, high))


def _wrong_input(component: str, expected: str, got: str) -> DexportError:
    return Failure(component, expected=expected, got=got, fix="rebuild the bundle, its program and engine disagree")


def _module(backend: str, name: str) -> Any:
    module, extra = _MODULES[backend]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            name, expected=f"the package {module}", got="it is not installed", fix=f"run: pip install 'dexport[{extra}]'"
        ) from error


def _log(trt: Any) -> Any:
    """A TensorRT logger that keeps errors, because failing calls only return False or None."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(message)

    return Log()


def _write(path: Path, content: memoryview) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
