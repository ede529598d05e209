"""Plugins are built by nvcc, a kernel that spills is refused, and what is missing is said in one line."""

from __future__ import annotations

import ctypes
import os
import shutil
from pathlib import Path

import pytest

from dexport.errors import Failure, UserError
from dexport.runtime.builders import plugins
from dexport.runtime.builders.plugins import (
    KernelResources,
    build_plugins,
    find_nvcc,
    known_architectures,
    parse_resources,
    plugin_folders,
)

ATTENTION = next(folder for folder in plugin_folders() if folder.name == "block_sparse_attention")
ENTRY = "_ZN41_GLOBAL__N__2e2a9c9f_9_kernel_cu_f261b4206attendINS_5ShapeIN7dexport4HalfELi64ELi1EEELm27648EEEv27DexportBlockSparseAttention"
LOG = f"""
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '{ENTRY}' for 'sm_87'
ptxas info    : Function properties for {ENTRY}
    16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 125 registers, used 1 barriers, 128 bytes smem, 480 bytes cmem[0]
ptxas info    : Compiling entry function 'plain' for 'sm_120'
ptxas info    : Function properties for plain
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, 480 bytes cmem[0]
"""


def _fake_nvcc(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    """An nvcc that knows sm_87 and otherwise does what the script says, with its arguments in $@."""
    program = folder / "nvcc"
    program.write_text(f'#!/bin/sh\n[ "$1" = --list-gpu-code ] && echo sm_75 sm_87 && exit\n{script}\n', encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


def test_reads_what_ptxas_reports() -> None:
    attend, plain = parse_resources("attention", LOG)
    assert (attend.sm, attend.registers, attend.shared_bytes, attend.spilled_bytes) == ("87", 125, 128 + 27648, 12)
    assert plain == KernelResources("attention", "plain", "120", 40, None, 0)
    if shutil.which("c++filt") is not None:
        assert attend.kernel == "attend<Shape<Half, 64, 1>, 27648ul>"


def test_says_that_there_is_no_nvcc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(plugins, "_USUAL_PLACE", tmp_path / "nvcc")
    with pytest.raises(UserError, match=r"^plugins: expected nvcc, .*, got none on the PATH or at .*; install the CUDA toolkit"):
        build_plugins([ATTENTION], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_knows_what_nvcc_knows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _fake_nvcc(monkeypatch, tmp_path, "exit 1")
    assert known_architectures(find_nvcc(), ()) == ["87"]
    for sm in ("120", "75", "87a"):
        with pytest.raises(UserError, match=rf"^--sm {sm}: expected one of 87, got {sm}; choose one that .*nvcc knows, from 80 on"):
            build_plugins([ATTENTION], tmp_path / "out", [sm])


def test_says_where_headers_are_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _fake_nvcc(monkeypatch, tmp_path, "exit 1")
    with pytest.raises(UserError, match=r"^--tensorrt-include .*: expected NvInferRuntime.h in it, got none; give the folder of"):
        build_plugins([ATTENTION], tmp_path / "out", tensorrt_include=tmp_path)


def test_says_what_does_not_compile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _fake_nvcc(monkeypatch, tmp_path, "echo 'nothing.h: fatal error: no such file' >&2; exit 1")
    with pytest.raises(Failure, match=r"^plugin block_sparse_attention: .* compile, got nothing.h: fatal error: no such file"):
        build_plugins([ATTENTION], tmp_path / "out")


def test_compiles_every_wrapper_where_there_are_headers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "NvInferRuntime.h").touch()
    _fake_nvcc(monkeypatch, tmp_path, f'echo "$@" >> {tmp_path / "commands"}; for last; do :; done; echo library > "$last"')
    for include, wrappers in ((None, 0), (tmp_path, 1)):
        (tmp_path / "commands").unlink(missing_ok=True)
        build_plugins(plugin_folders(), tmp_path / "out", tensorrt_include=include)
        commands = (tmp_path / "commands").read_text(encoding="utf-8").splitlines()
        assert len(commands) == len(plugin_folders()) == 2
        assert all(command.count("/tensorrt_plugin.cpp ") == wrappers for command in commands)
        assert all((f"-isystem {tmp_path} " in command) == bool(wrappers) for command in commands)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"libdexport_{folder.name}.so" for folder in plugin_folders()}


def test_a_kernel_that_spills_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The library is not left behind either."""
    (tmp_path / "log").write_text(LOG, encoding="utf-8")
    _fake_nvcc(monkeypatch, tmp_path, f'cat {tmp_path / "log"}; for last; do :; done; echo library > "$last"')
    with pytest.raises(Failure, match=r"got 12 bytes spilled by .*attend.* on sm_87; use another nvcc"):
        build_plugins([ATTENTION], tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_builds_plugins_for_one_architecture(tmp_path: Path) -> None:
    """Shared memory fits the smallest GPUs. Without a GPU the launcher can still refuse."""
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc on this machine: kernels are executed in emulation only")
    kernels = build_plugins([ATTENTION], tmp_path, ["87"])
    # Two dtypes of four heads, narrow and wide, with and without a bias; the widest has one form for both.
    assert len(kernels) == 2 * (4 * 2 * 2 - 1) and {kernel.sm for kernel in kernels} == {"87"}
    assert all(27648 <= (k.shared_bytes or 0) <= 99 * 1024 and k.registers <= 255 and not k.spilled_bytes for k in kernels)
    library = ctypes.CDLL(str(tmp_path / "libdexport_block_sparse_attention.so"))
    assert library.dexport_block_sparse_attention(None, None) == -1
