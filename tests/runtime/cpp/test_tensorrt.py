"""The C++ backend for TensorRT compiles against the headers of each version, and runs with the real TensorRT-RTX as far as it goes
without a GPU.

Headers are foreign, so the tests are told where they are, each by a variable of the environment, and skip where it is not set. Those of
TensorRT are in NVIDIA's public repository, a tag for each version; those of TensorRT-RTX come with its SDK.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from .conftest import SOURCES

CLASSIC, RTX = "tensorrt_contexts.cpp", "tensorrt_rtx_contexts.cpp"
HEADERS = {
    "TENSORRT_10_3_INCLUDE_DIR": ("10.3", CLASSIC),
    "TENSORRT_10_13_INCLUDE_DIR": ("10.13", CLASSIC),
    "TENSORRT_11_INCLUDE_DIR": ("11.", CLASSIC),
    "TENSORRT_INCLUDE_DIR": ("", CLASSIC),
    "TENSORRT_RTX_INCLUDE_DIR": ("1.", RTX),
}
"""Variable -> how the version of those headers begins, the source that belongs to them."""

_FLAGS = ("-std=c++17", "-fPIC", "-ffp-contract=off", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror", f"-I{SOURCES / 'src'}")
_USED = ("cuda_driver", "cuda_graph", "device_memory", "gpu_engine", "gpu_errors", "profiles", "weight_streaming")
_ALSO_USED = ("atomic_file", "error", "file", "tensor")


def _headers(variable: str) -> list[Path]:
    """Folders of the headers of TensorRT and of CUDA, which those include."""
    place = os.environ.get(variable)
    if not place:
        pytest.skip(f"{variable} does not say where those headers are")
    if shutil.which("g++") is None:
        pytest.skip("no g++ to compile with")
    homes = [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")), *sorted(Path("/usr/local").glob("cuda-*"))]
    cuda = next((home / "include" for home in homes if (home / "include" / "cuda_runtime_api.h").exists()), None)
    if cuda is None:
        pytest.skip("the headers of TensorRT need those of CUDA; CUDA_HOME does not say where they are")
    return [Path(place), cuda]


def _version(headers: Path) -> str:
    text = (headers / "NvInferVersion.h").read_text(encoding="utf-8")
    return ".".join(re.findall(r"define (?:NV_TENSORRT_|TRT_)(?:MAJOR|MINOR)(?:_ENTERPRISE|_RTX)? (\d+)", text)[:2])


def _compile(headers: list[Path], source: Path, folder: Path) -> Path:
    made = folder / f"{source.stem}.o"
    system = [flag for each in headers for flag in ("-isystem", str(each))]
    _run(["g++", *_FLAGS, *system, "-c", str(source), "-o", str(made)])
    return made


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr[-3000:]}"


@pytest.mark.parametrize("variable", HEADERS)
def test_the_backend_compiles_without_a_warning(variable: str, tmp_path: Path) -> None:
    headers = _headers(variable)
    version, contexts = HEADERS[variable]
    assert _version(headers[0]).startswith(version)
    for name in ("tensorrt.cpp", "tensorrt_log.cpp", contexts):
        assert _compile(headers, SOURCES / "src" / "backends" / name, tmp_path).stat().st_size > 0


@pytest.fixture(scope="module")
def load_plan(cpp_build: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that loads an engine with the TensorRT-RTX of the Python package."""
    headers = _headers("TENSORRT_RTX_INCLUDE_DIR")
    found = importlib.util.find_spec("tensorrt_rtx_libs")
    if found is None or found.origin is None:
        pytest.skip("tensorrt-rtx is not installed")
    library = next(Path(found.origin).parent.glob("libtensorrt_rtx.so.*"))
    folder = tmp_path_factory.mktemp("tensorrt-rtx")
    backends = SOURCES / "src" / "backends"
    sources = [backends / "tensorrt.cpp", backends / "tensorrt_log.cpp", backends / RTX, SOURCES / "tests" / "load_plan.cpp"]
    objects = cpp_build / "CMakeFiles" / "dexport_objects.dir" / "src"
    linked = [_compile(headers, source, folder) for source in sources]
    linked += [objects / "backends" / f"{name}.cpp.o" for name in _USED] + [objects / f"{name}.cpp.o" for name in _ALSO_USED]
    program = folder / "load_plan"
    _run(["g++", "-o", str(program), *map(str, linked), str(library), f"-Wl,-rpath,{library.parent}", "-ldl", "-lpthread"])
    return program


def _said(program: Path, plan: Path, driver: Path | None = None, plugins: Sequence[Path] = ()) -> tuple[int, list[str]]:
    environment = {key: value for key, value in os.environ.items() if key != "LD_LIBRARY_PATH"}
    if driver is not None:
        environment["LD_LIBRARY_PATH"] = str(driver)
    done = subprocess.run(
        [str(program), str(plan), *map(str, plugins)], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines()


def test_a_machine_without_a_driver_is_told_in_one_line(load_plan: Path, tmp_path: Path) -> None:
    if shutil.which("nvidia-smi") is not None:
        pytest.skip("a machine with an NVIDIA driver")
    plan = tmp_path / "toy.plan"
    plan.write_bytes(bytes(100))
    code, lines = _said(load_plan, plan)
    assert code == 2
    assert lines == [
        "CUDA: expected an NVIDIA GPU, got no NVIDIA driver (libcuda.so.1 not found); "
        "use a bundle for the target cpu, or install the driver"
    ]


def test_tensorrt_rtx_starts_and_its_reasons_arrive(load_plan: Path, cpp_build: Path, tmp_path: Path) -> None:
    """With the tests' library in place of the driver: enough to start, to have a damaged engine refused, and to be found too old."""
    (tmp_path / "libcuda.so.1").symlink_to(cpp_build / "tests" / "libfake_cuda.so")
    plan = tmp_path / "toy.plan"
    plan.write_bytes(bytes(100_000))
    code, lines = _said(load_plan, plan, tmp_path)
    assert code == 2
    assert lines[0] == "tensorrt-rtx started" and len(lines) == 2
    assert lines[1].startswith("toy.plan: expected an NVIDIA driver that is new enough for this TensorRT, got IRuntime::deserialize")
    assert "kEXPECTED_MAGIC_TAG" in lines[1] and lines[1].endswith("; install a newer NVIDIA driver")


def test_tensorrt_rtx_takes_our_plugin_and_no_other_library(load_plan: Path, cpp_build: Path, tmp_path: Path) -> None:
    """`IPluginRegistry::loadLibrary` for real: TensorRT-RTX has the registry of TensorRT. With the emulated kernel, as there is no GPU."""
    (tmp_path / "libcuda.so.1").symlink_to(cpp_build / "tests" / "libfake_cuda.so")
    plugins, plan = SOURCES.parents[1] / "plugins", tmp_path / "toy.plan"
    plan.write_bytes(bytes(100))
    library = tmp_path / "libdexport_lowrank_linear.so"
    folder = plugins / "lowrank_linear"
    system = [flag for each in _headers("TENSORRT_RTX_INCLUDE_DIR") for flag in ("-isystem", str(each))]
    includes = ["-I", str(plugins / "cuda"), "-I", str(folder), "-Wno-unknown-pragmas"]
    sources = ["-x", "c++", str(folder / "kernel.cu"), str(folder / "tensorrt_plugin.cpp")]
    _run(["g++", "-std=c++17", "-O1", "-shared", "-fPIC", *includes, *system, *sources, "-o", str(library)])
    _, lines = _said(load_plan, plan, tmp_path, [library, library, tmp_path / "libcuda.so.1", tmp_path / "none.so"])
    assert lines[1] == "libdexport_lowrank_linear.so: loaded"
    assert "plugin creator of LowrankLinear exists already" in lines[2], "why each runtime has libraries of its own"
    assert "SymbolAddress for getCreators could not be loaded" in lines[3] and "cannot open shared object file" in lines[4]
