"""dexport compiles diffusion pipelines into bundles that run on edge devices without PyTorch.

    import dexport

    dexport.build("path/to/pipeline", target="cpu", output="shapes.dxb")
    pipe = dexport.load("shapes.dxb")
    pipe("a red circle", seed=1).images[0].save("out.png")

Importing this package imports nothing heavy; what a call needs is imported by the call.
"""

from __future__ import annotations

from dexport.errors import DexportError, Failure, UserError

TYPE_CHECKING = False  # as type checkers know it, without importing typing
if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any, Literal

    from dexport.runtime.pipeline import Pipeline

    __version__: str
    Report = Callable[[str, float | None], None]

__all__ = ["DexportError", "Failure", "UserError", "build", "load"]


def build(
    model: str | Path, *, target: str, output: str | Path | None = None, report: Report = lambda stage, fraction: None, **options: Any
) -> Path:
    """Compiles a diffusion pipeline into a bundle. Needs `pip install 'dexport[export]'`.

    Args:
        model: a diffusers pipeline directory or a hub id.
        target: what to build for, such as "cpu", "rtx-4090" or "jetson-orin"; `dexport targets` lists all.
        output: a name ending in .dxb for one file, any other for a folder; by default MODEL-TARGET.dxb in the current folder.
        report: called with what is going on and the fraction of the build that is done, None where that is not known.
        options: the other fields of `dexport.exporter.options.BuildOptions`, such as steps=20 or sizes=["512x768"].

    Returns:
        The bundle's path.

    Raises:
        UserError: the request is impossible, or a package is missing.
        Failure: something broke on the way; no bundle is left behind.
    """
    from pathlib import Path

    from dexport.building import build_bundle
    from dexport.exporter.options import options_from

    chosen = options_from({"model": str(model), "target": target, **options}, "dexport.build")
    return build_bundle(chosen, None if output is None else Path(output), report)


def load(bundle: str | Path, *, trust: bool = False, verify: Literal["full", "sizes"] = "full", keep: bool = True) -> Pipeline:
    """Opens a bundle; the result is called like a diffusers pipeline.

    Args:
        bundle: a folder or a `.dxb` file.
        trust: run machine code (TensorRT engines) that was not built on this machine.
        verify: "full" compares the checksum of every file, "sizes" only their sizes.
        keep: keep components in memory between calls. If False, each is freed after its last use in a call, for small devices.

    Raises:
        UserError: it is not a bundle, is damaged, or needs what this machine lacks.
    """
    from dexport.runtime.pipeline import load as load_pipeline

    return load_pipeline(bundle, trust=trust, verify=verify, keep=keep)


def __getattr__(name: str) -> Any:
    """`__version__`, read from the installed package when asked for."""
    if name == "__version__":
        from importlib.metadata import version

        return version("dexport")
    raise AttributeError(f"module 'dexport' has no attribute {name!r}")
