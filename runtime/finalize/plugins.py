"""The plugins of a kit, compiled on its device before the engines: from the kit's own sources, which its models were written for.

Sources are code: what is compiled here runs here. They are used if they are those of this dexport, if the user's trust file has them
(a kit that was built on this machine), or if the user says so (--trust).
"""

from __future__ import annotations

import dataclasses
import os
import platform
import re
import tempfile
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

from dexport.errors import UserError
from dexport.runtime.builders.plugins import build_plugins, library_name, plugin_folders, plugin_sources
from dexport.runtime.bundle import Bundle
from dexport.runtime.bundle_writer import copy_file, file_entry
from dexport.runtime.finalize.work import key_of
from dexport.runtime.manifest import Manifest, Plugin

PLUGIN_FOLDER = "plugins"
_HEADER, _VERSION_HEADER = "NvInferRuntime.h", "NvInferVersion.h"
_HEADERS_FIX = "run: sudo apt-get install libnvinfer-headers-dev, or set TENSORRT_INCLUDE_DIR"
_VERSION = re.compile(r"#define\s+(?:NV_TENSORRT|TRT)_(MAJOR|MINOR)(?:_ENTERPRISE)?\s+(\d+)")


def with_own_sources(bundle: Bundle) -> Bundle:
    """The bundle, which hands out the sources of its plugins if all of them are dexport's own."""
    sources = {file for plugin in bundle.manifest.plugins for file in plugin.files}
    if not sources or bundle.native != sources:
        return bundle
    own = {file_entry(path).sha256 for folder in plugin_folders() for path in plugin_sources(folder.name).values()}
    ours = all(bundle.manifest.files[file].sha256 in own for file in sources)
    return dataclasses.replace(bundle, trust=True) if ours else bundle


def source_hashes(manifest: Manifest) -> list[str]:
    """sha256 of the sources of all plugins."""
    return [manifest.files[file].sha256 for plugin in manifest.plugins for file in plugin.files]


def library_key(manifest: Manifest, plugin: Plugin, sm: int | None, tensorrt: str) -> str:
    """Of what and how a library is made."""
    hashes = [manifest.files[file].sha256 for file in plugin.files]
    return key_of(metadata.version("dexport"), "plugin", hashes, sm, tensorrt)


def compile_library(bundle: Bundle, plugin: Plugin, sm: int, tensorrt: str, folder: Path) -> dict[str, Any]:
    """Compiles a plugin's library into `folder`; returns nothing to note of it.

    Args:
        tensorrt: version of the TensorRT that will load it.
        folder: the sources lie in a new one below it meanwhile: no compiler reads inside a .dxb, and in a folder that was there before
            a header of somebody else's could lie beside them.

    Raises:
        UserError: the sources are not trusted; there is no nvcc; TensorRT's headers are missing, or those of another version.
        Failure: nvcc does not compile them, or a kernel spills.
    """
    headers = _fitting_headers(plugin.name, tensorrt)
    manifest = next((file for file in plugin.files if PurePosixPath(file).name == "manifest.json"), plugin.files[0])
    with tempfile.TemporaryDirectory(dir=folder) as sources:
        for file in plugin.files:
            copy_file(bundle, file, Path(sources) / file)
        place = (Path(sources) / manifest).parent
        build_plugins([place], folder, [str(sm)], headers)
    os.replace(folder / library_name(place.name), folder / library_name(plugin.name))
    return {}


def find_headers() -> Path:
    """$TENSORRT_INCLUDE_DIR, or where Debian's package puts the headers of TensorRT.

    Raises:
        UserError: they are not there.
    """
    given = os.environ.get("TENSORRT_INCLUDE_DIR")
    places = [Path(given)] if given else [Path(f"/usr/include/{platform.machine()}-linux-gnu"), Path("/usr/include")]
    found = next((place for place in places if (place / _HEADER).exists()), None)
    if found is None:
        got = f"none in {' or '.join(map(str, places))}"
        raise UserError("plugins", expected=f"{_HEADER}, of TensorRT's headers", got=got, fix=_HEADERS_FIX)
    return found


def _fitting_headers(plugin: str, tensorrt: str) -> Path:
    found, wanted = find_headers(), ".".join(tensorrt.split(".")[:2])
    version = _header_version(found / _VERSION_HEADER)
    if version != wanted:
        got = f"those of {version or 'none'} in {found}"
        raise UserError(f"plugin {plugin}", expected=f"the headers of TensorRT {wanted}", got=got, fix=_HEADERS_FIX)
    return found


def _header_version(path: Path) -> str:
    """ "10.3"; empty if the file does not say."""
    try:
        numbers = dict(_VERSION.findall(path.read_text(encoding="utf-8", errors="replace")))
    except OSError:
        return ""
    return f"{numbers['MAJOR']}.{numbers['MINOR']}" if numbers.keys() == {"MAJOR", "MINOR"} else ""
