"""Plugins from their sources with nvcc, on any machine that has it: one library an operation for the architectures that are asked for.

A plugin is a folder of dexport/plugins with a manifest.json, which names its kernel and its wrapper for TensorRT. The library always has
the kernel's C launcher; with TensorRT's headers also what IPluginRegistry::loadLibrary looks for. Nothing is linked to TensorRT.

What was executed and what was only compiled: docs/plugins.md.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dexport
from dexport.errors import Failure, UserError

ARCHITECTURES = ("80", "86", "87", "89", "90", "110", "120")
"""What plugins are built for unless something else is asked for, as far as nvcc knows it: CUDA 12 knows neither 110 nor, at first, 120."""

SHARED = "cuda"
"""Folder beside the plugins, with headers that all of them include."""
_SOURCES = (".cu", ".cpp", ".h")
_USUAL_PLACE = Path("/usr/local/cuda/bin/nvcc")
_ENTRY = re.compile(r"Compiling entry function '(\S+)' for 'sm_(\w+)'")
_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_STATIC = re.compile(r"(\d+) bytes smem")
_DYNAMIC = re.compile(r"Lm(\d+)EEEv")


@dataclass(frozen=True)
class KernelResources:
    """What a kernel takes on one architecture, as ptxas reports it.

    Attributes:
        plugin: folder of the operation.
        kernel: its name in C++.
        sm: the architecture, as in sm_87.
        registers: of a thread.
        shared_bytes: of a block; None where the launcher decides, which it does unless the kernel's last template argument says them.
        spilled_bytes: what does not fit into registers and is written to memory and read again.
    """

    plugin: str
    kernel: str
    sm: str
    registers: int
    shared_bytes: int | None
    spilled_bytes: int


def plugin_folders() -> list[Path]:
    """The plugins whose sources came with dexport."""
    return sorted(path.parent for path in (Path(dexport.__file__).parent / "plugins").glob("*/manifest.json"))


def plugin_folder(name: str) -> Path:
    """The folder of one plugin of dexport."""
    return Path(dexport.__file__).parent / "plugins" / name


def plugin_sources(name: str) -> dict[str, Path]:
    """Path below the folder plugins -> file, of everything that one plugin is compiled from and of its manifest."""
    root = plugin_folder(name).parent
    found = [path for folder in (root / name, root / SHARED) for path in folder.iterdir() if path.suffix in _SOURCES]
    return {path.relative_to(root).as_posix(): path for path in sorted([*found, root / name / "manifest.json"])}


def build_plugins(
    folders: Sequence[Path], out: Path, sms: Sequence[str] = (), tensorrt_include: Path | None = None
) -> list[KernelResources]:
    """Writes libdexport_NAME.so for every folder into `out`; `sms` is empty for all of `ARCHITECTURES` that nvcc knows.

    Raises:
        UserError: there is no nvcc, it does not know an architecture, or there are no headers of TensorRT.
        Failure: something does not compile, or a kernel spills registers.
    """
    nvcc = find_nvcc()
    sms = known_architectures(nvcc, sms)
    if tensorrt_include is not None and not (tensorrt_include / "NvInferRuntime.h").exists():
        fix = "give the folder of TensorRT's headers: on Debian and Jetson that of the package libnvinfer-headers-dev"
        raise UserError(f"--tensorrt-include {tensorrt_include}", expected="NvInferRuntime.h in it", got="none", fix=fix)
    out.mkdir(parents=True, exist_ok=True)
    found = []
    for folder in folders:
        with tempfile.TemporaryDirectory(dir=out) as place:
            library = Path(place) / library_name(folder.name)
            resources = _build(nvcc, folder, library, sms, tensorrt_include)
            _refuse_spills(resources)
            os.replace(library, out / library.name)
            found += resources
    return found


def find_nvcc() -> str:
    """The compiler on the PATH or in its usual place."""
    found = shutil.which("nvcc") or (str(_USUAL_PLACE) if _USUAL_PLACE.exists() else None)
    if found is None:
        fix = "install the CUDA toolkit (on a Jetson, JetPack's cuda-nvcc package) or put its bin folder on the PATH"
        raise UserError("plugins", expected="nvcc, the compiler of CUDA", got=f"none on the PATH or at {_USUAL_PLACE}", fix=fix)
    return found


def known_architectures(nvcc: str, asked: Sequence[str]) -> list[str]:
    """Those that were asked for, which nvcc has to know; or those of `ARCHITECTURES` that it knows."""
    listed = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=False).stdout.split()
    known = [name.removeprefix("sm_") for name in listed]
    unknown = [sm for sm in asked if sm not in known or not sm.isdecimal() or int(sm) < 80]
    if unknown:
        usable = ", ".join(sm for sm in known if sm.isdecimal() and int(sm) >= 80)
        fix = f"choose one that {nvcc} knows, from 80 on"
        raise UserError(f"--sm {unknown[0]}", expected=f"one of {usable}", got=unknown[0], fix=fix)
    return list(dict.fromkeys(asked)) or [sm for sm in ARCHITECTURES if sm in known]


def nvcc_arguments(folder: Path, sms: Sequence[str], manifest: Mapping[str, Any], *, tensorrt: bool) -> list[str]:
    """What nvcc is told of a plugin, but for the folder of TensorRT's headers and the name of the library.

    Args:
        folder: of the plugin, with that of the shared headers beside it.
        manifest: the plugin's.
        tensorrt: with the node, which needs those headers.
    """
    sources = [folder / manifest["kernel"], *([folder / manifest["tensorrt"]] if tensorrt else [])]
    codes = [part for sm in sms for part in ("-gencode", f"arch=compute_{sm},code=sm_{sm}")]
    includes = ["-I", str(folder.parent / SHARED), "-I", str(folder)]
    return ["-std=c++17", "-O3", "-shared", "-Xcompiler", "-fPIC", "-Xptxas", "-v", *codes, *includes, *map(str, sources)]


def plugin_manifest(folder: Path) -> dict[str, Any]:
    """What the manifest.json of a plugin says.

    Raises:
        Failure: there is none, or it does not name the sources.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if all(Path(str(manifest[key])).name == manifest[key] for key in ("kernel", "tensorrt")):
            return manifest
    except (OSError, ValueError, TypeError, KeyError):
        pass
    raise Failure(f"plugin {folder.name}", expected="manifest.json with its sources", got="something else", fix="get the sources again")


def library_name(plugin: str) -> str:
    """File name of a plugin's library."""
    return f"libdexport_{plugin}.so"


def _build(nvcc: str, folder: Path, library: Path, sms: Sequence[str], tensorrt_include: Path | None) -> list[KernelResources]:
    headers = [] if tensorrt_include is None else ["-isystem", str(tensorrt_include)]
    arguments = nvcc_arguments(folder, sms, plugin_manifest(folder), tensorrt=bool(headers))
    done = subprocess.run([nvcc, *arguments, *headers, "-o", str(library)], capture_output=True, text=True, check=False)
    log = done.stdout + done.stderr
    if done.returncode != 0:
        wrong = next((line for line in log.splitlines() if "error" in line.lower()), log.strip()[-200:] or f"exit code {done.returncode}")
        fix = f"check that {nvcc} works here; report it otherwise"
        raise Failure(f"plugin {folder.name}", expected="its sources to compile", got=wrong, fix=fix)
    return parse_resources(folder.name, log)


def parse_resources(plugin: str, log: str) -> list[KernelResources]:
    """What ptxas said with -v: three kinds of lines for every kernel and architecture."""
    found: list[KernelResources] = []
    entry, spilled = None, 0
    for line in log.splitlines():
        if match := _ENTRY.search(line):
            entry, spilled = (match[1], match[2]), 0
        elif match := _SPILLS.search(line):
            spilled = int(match[1]) + int(match[2])
        elif entry is not None and (match := _USED.search(line)):
            static, dynamic = _STATIC.search(line), _DYNAMIC.search(entry[0])
            shared = (int(static[1]) if static else 0) + int(dynamic[1]) if dynamic else None
            found.append(KernelResources(plugin, entry[0], entry[1], int(match[1]), shared, spilled))
            entry = None
    names = _readable([kernel.kernel for kernel in found])
    return [KernelResources(k.plugin, name, k.sm, k.registers, k.shared_bytes, k.spilled_bytes) for k, name in zip(found, names)]


def _readable(symbols: Sequence[str]) -> list[str]:
    """Names without namespaces and arguments; the symbols themselves where there is no c++filt."""
    if not symbols or shutil.which("c++filt") is None:
        return list(symbols)
    done = subprocess.run(["c++filt"], input="\n".join(symbols), capture_output=True, text=True, check=True)
    names = [line.replace("(anonymous namespace)::", "").replace("dexport::", "") for line in done.stdout.splitlines()]
    return [re.sub(r"^void |\([^()]*\)$", "", name) for name in names]


def _refuse_spills(resources: Sequence[KernelResources]) -> None:
    worst = max(resources, key=lambda kernel: kernel.spilled_bytes, default=None)
    if worst is not None and worst.spilled_bytes:
        got = f"{worst.spilled_bytes} bytes spilled by {worst.kernel} on sm_{worst.sm}"
        raise Failure(f"plugin {worst.plugin}", expected="kernels that fit into registers", got=got, fix="use another nvcc, and report it")
