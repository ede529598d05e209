"""The few calls of the CUDA driver that running an engine takes: memory, copies, one stream.

Bound with ctypes, because the driver's library is on every machine that can run an engine and is the only thing needed:
no CUDA toolkit, no package. Names carry the suffixes under which the driver exports today's signatures (`cuMemAlloc_v2`).
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from dexport.errors import Failure, UserError

_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76  # CUdevice_attribute
_STREAM_NON_BLOCKING = 1


class CudaDevice:
    """One GPU with a stream and device memory. Not for several threads at once.

    Args:
        index: which GPU, counted as the driver counts them (CUDA_VISIBLE_DEVICES applies).

    Raises:
        UserError: there is no NVIDIA driver, or no such GPU.
    """

    def __init__(self, index: int = 0) -> None:
        self._cuda = _driver()
        found = ctypes.c_int()
        self._do("cuDeviceGetCount", ctypes.byref(found))
        if index >= found.value:
            raise UserError(
                "CUDA", expected=f"GPU {index}", got=f"{found.value} NVIDIA GPUs", fix="choose another target, such as cpu, or another GPU"
            )
        self._device = ctypes.c_int()
        self._do("cuDeviceGet", ctypes.byref(self._device), ctypes.c_int(index))
        self._context = ctypes.c_void_p()
        self._do("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device)
        self.use()
        self._stream = ctypes.c_void_p()
        self._do("cuStreamCreate", ctypes.byref(self._stream), ctypes.c_uint(_STREAM_NON_BLOCKING))

    @property
    def sm(self) -> int:
        """Compute capability, such as 89 for 8.9."""
        return 10 * self._attribute(_COMPUTE_CAPABILITY_MAJOR) + self._attribute(_COMPUTE_CAPABILITY_MINOR)

    @property
    def stream(self) -> int:
        """Handle of the stream on which everything here is ordered."""
        return self._stream.value or 0

    def use(self) -> None:
        """Makes this device current for the calling thread; needed before anything else in a thread."""
        self._do("cuCtxSetCurrent", self._context)

    def allocate(self, size: int) -> int:
        """Address of `size` bytes of device memory (at least one, so that empty tensors have an address)."""
        address = ctypes.c_uint64()
        self._do("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(size, 1)))
        return address.value

    def free(self, address: int) -> None:
        """Gives memory back."""
        self._do("cuMemFree_v2", ctypes.c_uint64(address))

    def upload(self, array: npt.NDArray[Any], address: int) -> None:
        """Queues a copy of a contiguous array to the device."""
        if array.nbytes:
            self._do("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(address), ctypes.c_void_p(array.ctypes.data), _size(array), self._stream)

    def download(self, address: int, array: npt.NDArray[Any]) -> None:
        """Queues a copy from the device into a contiguous array; it is there after `wait`."""
        if array.nbytes:
            self._do("cuMemcpyDtoHAsync_v2", ctypes.c_void_p(array.ctypes.data), ctypes.c_uint64(address), _size(array), self._stream)

    def wait(self) -> None:
        """Waits until everything queued is done; errors of earlier calls show here."""
        self._do("cuStreamSynchronize", self._stream)

    def close(self) -> None:
        """Gives stream and device back."""
        self.use()
        self._do("cuStreamDestroy_v2", self._stream)
        self._do("cuDevicePrimaryCtxRelease_v2", self._device)

    def _attribute(self, which: int) -> int:
        value = ctypes.c_int()
        self._do("cuDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(which), self._device)
        return value.value

    def _do(self, function: str, *arguments: Any) -> None:
        code = getattr(self._cuda, function)(*arguments)
        if code != 0:
            raise Failure(
                f"CUDA {function}", expected="success", got=_reason(self._cuda, code), fix="check GPU memory and driver (nvidia-smi)"
            )


def _driver() -> ctypes.CDLL:
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        cuda = ctypes.CDLL(name)
    except OSError as error:
        raise UserError(
            "CUDA", expected="an NVIDIA GPU", got=f"no NVIDIA driver ({name} not found)", fix="choose the target cpu, or install the driver"
        ) from error
    code = cuda.cuInit(ctypes.c_uint(0))
    if code != 0:
        raise UserError(
            "CUDA",
            expected="an NVIDIA GPU",
            got=f"a driver that says {_reason(cuda, code)}",
            fix="choose the target cpu, or check nvidia-smi",
        )
    return cuda


def _reason(cuda: ctypes.CDLL, code: int) -> str:
    text = ctypes.c_char_p()
    cuda.cuGetErrorString(ctypes.c_int(code), ctypes.byref(text))
    return f"error {code} ({text.value.decode()})" if text.value else f"error {code}"


def _size(array: npt.NDArray[np.generic]) -> ctypes.c_size_t:
    return ctypes.c_size_t(array.nbytes)
