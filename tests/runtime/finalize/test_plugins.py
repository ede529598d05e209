"""A kit's plugins become libraries before its engines, from its own sources, which somebody has to trust.

nvcc is a stand-in here that writes files; whether the sources compile, tests/runtime/builders/test_plugins.py shows. With
TENSORRT_INCLUDE_DIR and nvcc the real library is built from a kit, too.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dexport.errors import DexportError, Failure, UserError
from dexport.runtime.bundle import open_bundle
from dexport.runtime.bundle_writer import file_entry, trust_own_code
from dexport.runtime.finalize.finalize import Finished, finalize
from dexport.runtime.finalize.plugins import compile_library, with_own_sources
from dexport.runtime.finalize.remote import Remote
from dexport.runtime.finalize.ssh import Host
from dexport.runtime.manifest import Plugin
from dexport.runtime.trust import default_trust_file, trusted_hashes
from tests.runtime.finalize.small_kit import small_kit
from tests.runtime.finalize.test_finalize import ORIN, _built_by_the_kit, trtexec  # noqa: F401 - a fixture

TARGET = "jetson-orin-nano-8gb@jetpack-6.2"
NAME, LIBRARY = "lowrank_linear", "plugins/libdexport_lowrank_linear.so"
NVCC = """#!/usr/bin/env bash
[[ "$1" == --list-gpu-code ]] && echo sm_87 && exit
echo "$*" >>"$NVCC_CALLS"
sources=""
while [[ "$1" != -o ]]; do
  case "$1" in *.cu | *.cpp) sources+="$(sha256sum "$1" | cut -c 1-8) " ;; -I) ls "$2" >>"$NVCC_CALLS.headers" ;; esac
  shift
done
[[ -z "${FAIL_NVCC:-}" ]] || { echo "kernel.cu: error: no"; exit 1; }
printf 'library %s' "$sources" >"$2"
"""
pytestmark = pytest.mark.usefixtures("trtexec")


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """A stand-in for nvcc and empty headers of TensorRT 10.3; gives the commands with which nvcc was called."""
    tools, calls, headers = tmp_path / "tools", tmp_path / "nvcc-calls", tmp_path / "headers"
    tools.mkdir()
    headers.mkdir()
    (tools / "nvcc").write_text(NVCC)
    (tools / "nvcc").chmod(0o755)
    (headers / "NvInferRuntime.h").touch()
    (headers / "NvInferVersion.h").write_text("#define NV_TENSORRT_MAJOR 10 //!< major\n#define NV_TENSORRT_MINOR 3 //!< minor\n")
    monkeypatch.setenv("PATH", str(tools), prepend=os.pathsep)
    monkeypatch.setenv("NVCC_CALLS", str(calls))
    monkeypatch.setenv("TENSORRT_INCLUDE_DIR", str(headers))
    return lambda: calls.read_text().splitlines() if calls.exists() else []


def _kit(tmp_path: Path, change: str = "") -> Path:
    kit = tmp_path / "kit.dxb"
    return kit if kit.exists() else small_kit(kit, TARGET, plugin=NAME, change=change)


def _finalize(tmp_path: Path, **options: Any) -> Finished:
    return finalize(_kit(tmp_path), tmp_path / "out.dxb", device=ORIN, test=False, **options)


def _refused(kind: type[DexportError], tmp_path: Path, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        _finalize(tmp_path, **options)
    return str(caught.value)


def test_the_library_is_compiled_loaded_and_kept(
    tmp_path: Path,
    compiled: Callable[[], list[str]],
    trtexec: Callable[[], list[str]],  # noqa: F811
) -> None:
    bundle = open_bundle(_finalize(tmp_path).path)
    assert bundle.manifest.plugins == (Plugin(name=NAME, files=(LIBRARY,), sm=87, tensorrt="10.3.0"),)
    assert [file for file in bundle.manifest.files if file.startswith("plugins/")] == [LIBRARY]
    assert bundle.read_bytes(LIBRARY).startswith(b"library "), "it is trusted, for it was made here"
    assert {bundle.manifest.files[file].sha256 for file in bundle.manifest.native_files()} == trusted_hashes(default_trust_file())
    (command,) = compiled()
    folder = re.escape(f"{tmp_path}/out.dxb.finalize/libdexport_{NAME}.partial")
    wanted = rf"-gencode arch=compute_87,code=sm_87 -I ({folder}/\w+/plugins)/cuda -I \1/{NAME} \1/{NAME}/kernel.cu \1/{NAME}/tensorrt_"
    assert re.search(wanted, command)
    assert f"-isystem {tmp_path}/headers" in command
    flag = f"--dynamicPlugins={tmp_path}/out.dxb.finalize/libdexport_{NAME}/libdexport_{NAME}.so"
    assert len(trtexec()) == 2 and all(flag in call for call in trtexec())


def test_no_header_lies_beside_the_sources_that_did_not_come_with_them(tmp_path: Path, compiled: Callable[[], list[str]]) -> None:
    """A compiler that finds somebody's `cuda_fp16.h` before CUDA's would put his code into a library that is trusted from then on."""
    for place in ("sources", f"libdexport_{NAME}.partial", f"libdexport_{NAME}.partial/sources"):
        for folder in ("cuda", NAME):
            (tmp_path / "out.dxb.finalize" / place / "plugins" / folder).mkdir(parents=True)
            (tmp_path / "out.dxb.finalize" / place / "plugins" / folder / "cuda_fp16.h").touch()
    _finalize(tmp_path)
    assert len(compiled()) == 1
    seen = (tmp_path / "nvcc-calls.headers").read_text().split()
    assert {"primitives.h", "launcher.h"} < set(seen) and "cuda_fp16.h" not in seen


def test_it_goes_on_after_the_library(tmp_path: Path, compiled: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIL", "decoder")
    with pytest.raises(Failure):
        _finalize(tmp_path)
    monkeypatch.delenv("FAIL")
    assert _finalize(tmp_path).kept == ("denoiser-64x64",) and len(compiled()) == 1


def test_a_damaged_library_is_compiled_again(tmp_path: Path, compiled: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIL", "decoder")
    with pytest.raises(Failure):
        _finalize(tmp_path)
    monkeypatch.delenv("FAIL")
    (tmp_path / f"out.dxb.finalize/libdexport_{NAME}/libdexport_{NAME}.so").write_text("library of somebody")
    bundle = open_bundle(_finalize(tmp_path).path)
    assert len(compiled()) == 2 and b"somebody" not in bundle.read_bytes(LIBRARY)


def test_sources_from_elsewhere_need_trust(tmp_path: Path, compiled: Callable[[], list[str]]) -> None:
    """Nothing of them reaches the compiler before."""
    _kit(tmp_path, change="// of a stranger\n")
    message = _refused(UserError, tmp_path)
    assert "expected machine code that was built on this machine or that you trust, got code from elsewhere" in message
    assert "pass --trust" in message and not compiled()
    assert _finalize(tmp_path, trust_code=True).built and len(compiled()) == 1


@pytest.mark.usefixtures("compiled")
def test_a_kit_that_was_built_here_is_trusted(tmp_path: Path) -> None:
    trust_own_code(_kit(tmp_path, change="// of this desk\n"))
    assert _finalize(tmp_path).built


def test_only_whole_sources_are_our_own(tmp_path: Path) -> None:
    assert with_own_sources(open_bundle(_kit(tmp_path))).trust
    other = small_kit(tmp_path / "other.dxb", TARGET, plugin=NAME, change="// ")
    assert not with_own_sources(open_bundle(other)).trust
    assert not with_own_sources(open_bundle(small_kit(tmp_path / "none.dxb", TARGET))).trust


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("NvInferRuntime.h", None, "plugins: expected NvInferRuntime.h, of TensorRT's headers, got none in "),
        ("NvInferVersion.h", None, "plugin lowrank_linear: expected the headers of TensorRT 10.3, got those of none in "),
        ("NvInferVersion.h", "#define TRT_MAJOR_ENTERPRISE 11\n#define TRT_MINOR_ENTERPRISE 1\n", "got those of 11.1 in "),
    ],
)
def test_headers_are_there_and_of_this_tensorrt(
    tmp_path: Path, compiled: Callable[[], list[str]], name: str, content: str | None, message: str
) -> None:
    header = tmp_path / "headers" / name
    header.unlink()
    if content is not None:
        header.write_text(content)
    found = _refused(UserError, tmp_path)
    assert message in found and "run: sudo apt-get install libnvinfer-headers-dev, or set TENSORRT_INCLUDE_DIR" in found
    assert not compiled()


@pytest.mark.usefixtures("compiled")
def test_what_does_not_compile_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIL_NVCC", "1")
    assert "plugin lowrank_linear: expected its sources to compile, got kernel.cu: error: no" in _refused(Failure, tmp_path)
    assert not (tmp_path / "out.dxb").exists()


def test_other_sources_make_other_engines(tmp_path: Path, compiled: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIL", "decoder")
    with pytest.raises(Failure):
        _finalize(tmp_path)
    monkeypatch.delenv("FAIL")
    (tmp_path / "kit.dxb").unlink()
    _kit(tmp_path, change="// newer\n")
    assert not _finalize(tmp_path, trust_code=True).kept and len(compiled()) == 2


def test_a_library_of_a_device_without_dexport(tmp_path: Path) -> None:
    manifest = open_bundle(_kit(tmp_path)).manifest
    engines = _built_by_the_kit(tmp_path)
    hashes = ",".join(sorted(manifest.files[file].sha256 for file in manifest.plugins[0].files))
    stamp = engines / f"libdexport_{NAME}.made-by"
    (engines / f"libdexport_{NAME}.so").write_text("library")
    stamp.write_text(f"TensorRT 100300 {'0' * 64} -std=c++17 -O3\n")
    assert f"libdexport_{NAME}.made-by: expected the sha256 of this kit's model" in _refused(UserError, tmp_path, engines=engines)
    stamp.write_text(f"TensorRT 100300 {hashes} -std=c++17 -O3\n")
    bundle = open_bundle(_finalize(tmp_path, engines=engines).path)
    assert bundle.manifest.plugins == (Plugin(name=NAME, files=(LIBRARY,), sm=87, tensorrt="10.3.0"),)
    with pytest.raises(UserError, match="expected machine code that was built on this machine or that you trust"):
        bundle.read_bytes(LIBRARY)


def test_a_desk_passes_on_what_it_does_not_trust(tmp_path: Path) -> None:
    """A kit in a folder is packed for its journey; whether its sources may be compiled is for the device to say."""
    kit = small_kit(tmp_path / "kit", TARGET, plugin=NAME, change="// of a stranger\n")
    packed = Remote(kit, Host("nobody@nowhere"))._archive(tmp_path)
    assert open_bundle(packed).manifest.plugins == open_bundle(kit).manifest.plugins


def test_the_real_library_has_kernels_and_node(tmp_path: Path) -> None:
    """nvcc compiles what the kit holds; without TensorRT and a GPU the launcher can still refuse, and say that it is there."""
    headers = os.environ.get("TENSORRT_INCLUDE_DIR")
    if shutil.which("nvcc") is None or headers is None:
        pytest.skip("no nvcc, or TENSORRT_INCLUDE_DIR does not say where the headers of TensorRT are")
    from dexport.runtime.finalize.plugins import _header_version

    bundle = with_own_sources(open_bundle(_kit(tmp_path)))
    out = tmp_path / "out"
    out.mkdir()
    version = _header_version(Path(headers) / "NvInferVersion.h")
    compile_library(bundle, bundle.manifest.plugins[0], 87, version, out)
    assert file_entry(out / f"libdexport_{NAME}.so").bytes > 100_000
    library = ctypes.CDLL(str(out / f"libdexport_{NAME}.so"))
    assert library.dexport_lowrank_linear(None, None) == -1 and library.getCreators
