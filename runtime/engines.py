"""Opens the compiled form of a component with the backend that its format names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

from dexport.errors import UserError
from dexport.runtime.backends.tensorrt_plugins import PluginLibrary
from dexport.runtime.bundle import Bundle
from dexport.runtime.manifest import Variant

Array = npt.NDArray[Any]


class Engine(Protocol):
    """A component that runs: input name -> array in, output name -> array out; `close` frees its memory."""

    def __call__(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Runs the component once."""

    def close(self) -> None:
        """Frees what the engine holds; it cannot be called afterwards."""


def open_engine(bundle: Bundle, component: str, size: tuple[int, int]) -> Engine:
    """The engine of a component for a size.

    Raises:
        UserError: the bundle is a build kit, lacks the size, its native code is not trusted, or the backend is not installed.
        Failure: the backend cannot load the engine.
    """
    variant = variant_for(bundle, component, size)
    name = f"{bundle.path}: {component}"
    match variant.format:
        case "openvino":
            from dexport.runtime.backends.openvino import OpenVinoEngine

            weights = next(f for f in variant.files if f.endswith(".bin"))
            precision = bundle.manifest.components[component].precision
            mapped = bundle.map(weights, copy_on_write=True)
            return OpenVinoEngine(bundle.read_bytes(variant.artifact), mapped, precision, compile_cache(), name)
        case "onnx":
            from dexport.runtime.backends.onnxruntime import OnnxRuntimeEngine

            return OnnxRuntimeEngine(bundle.file(variant.artifact), bundle.manifest.backend, name)
        case "tensorrt" | "tensorrt-rtx":
            from dexport.runtime.backends.tensorrt import TensorRTEngine

            cache = compile_cache() / f"{bundle.manifest.files[variant.artifact].sha256}.kernels"
            built_for = (variant.kernels or {}).get("accelerators", ())
            sm = tuple(int(accelerator.removeprefix("sm")) for accelerator in built_for)
            return TensorRTEngine(
                bundle.file(variant.artifact), variant.format, name, sm=sm, cache=cache, plugins=_plugin_libraries(bundle)
            )
        case _:
            fix = f"run on the device: dexport finalize {bundle.path}"
            raise UserError(name, expected="engines", got="a build kit for a device", fix=fix)


def _plugin_libraries(bundle: Bundle) -> list[PluginLibrary]:
    """The libraries of a bundle, if they are trusted: loading one runs it."""
    return [
        PluginLibrary(bundle.read_bytes(plugin.files[0]), f"{bundle.path}: plugin {plugin.name}", plugin.sm, plugin.tensorrt)
        for plugin in bundle.manifest.plugins
        if plugin.sm is not None and plugin.tensorrt is not None
    ]


def variant_for(bundle: Bundle, component: str, size: tuple[int, int]) -> Variant:
    """The compiled form of a component that serves a size.

    Raises:
        UserError: none does.
    """
    variants = bundle.manifest.components[component].variants
    for variant in variants:
        if variant.size is None or variant.size == size:
            return variant
    sizes = ", ".join(f"{v.size[0]}x{v.size[1]}" for v in variants if v.size)
    raise UserError(f"{bundle.path}: {component}", expected=f"a size among {sizes}", got=f"{size[0]}x{size[1]}", fix="rebuild with --size")


def compile_cache() -> Path:
    """Folder for what backends compile when they load: their own keys hold model, version and processor."""
    folder = Path(os.environ.get("DEXPORT_CACHE_DIR") or Path.home() / ".cache" / "dexport") / "compiled"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
