"""Builds a kernel's source as a library and calls it: emulated on this processor, or by nvcc for the GPU that is here."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parent.parent.parent
PLUGINS = ROOT / "plugins"
_WARNINGS = ("-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror", "-Wno-unknown-pragmas")
_INCLUDES = ("-I", str(PLUGINS / "cuda"))


class KernelLibrary:
    """A loaded library whose launchers take pointers of tensors on `device`."""

    def __init__(self, path: Path, device: str) -> None:
        self.device = device
        self._library = ctypes.CDLL(str(path))

    def call(self, launcher: str, *arguments: Any) -> int:
        """The launcher's code; tensors become pointers, None a null pointer, float a C float, int a C int, text and structures pointers."""
        return int(getattr(self._library, launcher)(*(_as_c(argument) for argument in arguments)))

    def run(self, launcher: str, *arguments: Any) -> None:
        """Calls a launcher that has to succeed, and waits for its end."""
        code = self.call(launcher, *arguments)
        if self.device == "cuda":
            torch.cuda.synchronize()
        assert code == 0, f"{launcher} ended with {code}: {self.error()}"

    def error(self) -> str:
        """What the emulation found wrong in the last kernel."""
        if self.device == "cuda":
            return "see CUDA's list of errors"
        self._library.dexport_emulation_error.restype = ctypes.c_char_p
        return str(self._library.dexport_emulation_error().decode())

    def seed(self, seed: int) -> None:
        """The order in which the emulation runs threads from now on; no meaning on a GPU."""
        if self.device == "cpu":
            self._library.dexport_emulation_seed(seed)


def emulated(source: Path, folder: Path, *more: str | Path) -> KernelLibrary:
    """The library of `source` for this processor, with further sources or flags; skips where there is no C++ compiler."""
    if shutil.which("g++") is None:
        pytest.skip("no g++ to compile the emulated kernel with")
    library = folder / f"{source.stem}_emulated.so"
    flags = ("-std=c++17", "-O1", "-shared", "-fPIC", *_WARNINGS, *_INCLUDES)
    _compile(["g++", *flags, "-x", "c++", str(source), *map(str, more), "-o", str(library)])
    return KernelLibrary(library, "cpu")


def tensorrt_headers() -> list[str]:
    """Flags that find the headers of TensorRT, those of CUDA, and tensorrt_node.h; skips where they are not said or not there."""
    place = os.environ.get("TENSORRT_INCLUDE_DIR")
    if not place:
        pytest.skip("TENSORRT_INCLUDE_DIR does not say where the headers of TensorRT are")
    known = [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")), *sorted(Path("/usr/local").glob("cuda-*"))]
    cuda = next((home / "include" for home in known if (home / "include" / "cuda_runtime_api.h").exists()), None)
    if cuda is None:
        pytest.skip("the headers of TensorRT need those of CUDA; CUDA_HOME does not say where they are")
    return ["-isystem", place, "-isystem", str(cuda), "-I", str(Path(__file__).parent)]


def compiled(source: Path, folder: Path) -> KernelLibrary:
    """The library of `source` for the GPU of this machine; skips where there is no GPU or no nvcc."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU that PyTorch can use")
    if shutil.which("nvcc") is None:
        pytest.skip("a GPU, but no nvcc to compile the kernel with")
    library = folder / f"{source.stem}_gpu.so"
    major, minor = torch.cuda.get_device_capability()
    flags = ("-std=c++17", "-O3", "-shared", "-Xcompiler", "-fPIC", f"-arch=sm_{major}{minor}", *_INCLUDES)
    _compile(["nvcc", *flags, str(source), "-o", str(library)])
    return KernelLibrary(library, "cuda")


def _compile(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


def _as_c(argument: Any) -> Any:
    if argument is None:
        return ctypes.c_void_p(None)
    if isinstance(argument, torch.Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    if isinstance(argument, ctypes.Structure):
        return ctypes.byref(argument)
    if isinstance(argument, str):
        return ctypes.c_char_p(argument.encode())
    return ctypes.c_float(argument) if isinstance(argument, float) else ctypes.c_int(argument)
