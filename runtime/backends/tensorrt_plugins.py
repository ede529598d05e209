"""Libraries of plugins for TensorRT: loaded into the runtime that will read an engine, before it does.

Not into the registry of the process: that takes one plugin of a name, and two bundles may have come with different ones. trtexec does the
same (sampleInference.cpp of TensorRT 10.3).
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dexport.errors import Failure, UserError

_REBUILD = "finalize the kit on this machine"


@dataclass(frozen=True)
class PluginLibrary:
    """A library that the user trusts.

    Attributes:
        code: its bytes, as they were checked.
        name: of the plugin, with its bundle, for errors.
        sm: compute capability times ten that it is for.
        tensorrt: version that it was compiled for.
    """

    code: bytes
    name: str
    sm: int
    tensorrt: str


def load_plugins(runtime: Any, libraries: Sequence[PluginLibrary], *, sm: int, version: str, errors: list[str]) -> None:
    """Loads libraries into a `tensorrt.Runtime`.

    Args:
        sm: of the GPU.
        version: of this TensorRT.
        errors: where its logger puts what it has to say.

    Raises:
        UserError: a library is for another GPU, or for another major version of TensorRT.
        Failure: TensorRT does not take it.
    """
    for library in libraries:
        if library.sm != sm:
            raise UserError(library.name, expected=f"a plugin for this GPU (SM{sm})", got=f"one for SM{library.sm}", fix=_REBUILD)
        if library.tensorrt.split(".")[0] != version.split(".")[0]:
            got = f"one for {library.tensorrt}"
            raise UserError(library.name, expected=f"a plugin for TensorRT {version}", got=got, fix=_REBUILD)
        errors.clear()
        with tempfile.TemporaryDirectory(prefix="dexport-") as folder:  # the loader wants a file; this one only the user can change
            path = Path(folder) / "plugin.so"
            path.write_bytes(library.code)
            taken = runtime.get_plugin_registry().load_library(str(path)) is not None
        if not taken:
            got = " ".join("; ".join(errors).split()) or "a refusal without a reason"
            raise Failure(library.name, expected="a library that TensorRT takes", got=got, fix=_REBUILD)
