import ctypes

import numpy as np
import pytest

from dexport.errors import DexportError, Failure, UserError
from dexport.runtime.backends.cuda_driver import CudaDevice


@pytest.fixture
def device() -> CudaDevice:
    try:
        return CudaDevice()
    except DexportError as error:
        pytest.skip(f"needs an NVIDIA GPU: {error}")


def test_no_driver() -> None:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        with pytest.raises(
            UserError, match=r"^CUDA: expected an NVIDIA GPU, got no NVIDIA driver \(libcuda.so.1 not found\); choose the target cpu"
        ):
            CudaDevice()
    else:
        pytest.skip("this machine has an NVIDIA driver")


@pytest.mark.gpu
def test_memory_goes_to_the_device_and_back(device: CudaDevice) -> None:
    array = np.arange(1000, dtype=np.float32)
    address = device.allocate(array.nbytes)
    back = np.empty_like(array)
    device.upload(array, address)
    device.download(address, back)
    device.wait()
    device.free(address)
    assert np.array_equal(array, back) and device.sm >= 50
    device.close()


@pytest.mark.gpu
def test_no_memory_is_a_failure(device: CudaDevice) -> None:
    with pytest.raises(Failure, match=r"^CUDA cuMemAlloc_v2: expected success, got error 2 .*; check GPU memory and driver"):
        device.allocate(1 << 50)
    device.close()


@pytest.mark.gpu
def test_no_such_gpu(device: CudaDevice) -> None:
    with pytest.raises(UserError, match=r"^CUDA: expected GPU 999, got \d+ NVIDIA GPUs; choose another target"):
        CudaDevice(999)
    device.close()
