"""Pipeline families: one adapter file each; `open_directory` finds the one that a pipeline directory needs."""

from __future__ import annotations

import functools
import importlib
import inspect
import json
from collections.abc import Callable
from pathlib import Path

from dexport.errors import UserError
from dexport.exporter.pipelines.family import Pipeline

_ADAPTERS = ("pixart", "dit", "stable_diffusion", "stable_diffusion_xl", "sd3", "flux", "wan")


def open_directory(directory: Path, frames: int | None = None) -> Pipeline:
    """Opens a diffusers pipeline directory.

    Args:
        frames: of the video, for pipelines that make videos; None takes the pipeline's default.

    Raises:
        UserError: not a pipeline directory, a pipeline class without an adapter, or frames asked of a pipeline that makes pictures.
    """
    index = directory / "model_index.json"
    fix = "give the directory that save_pretrained wrote, or a hub id"
    if not directory.is_dir():
        raise UserError(str(directory), expected="a diffusers pipeline directory", got="no such directory", fix=fix)
    if not index.is_file():
        raise UserError(str(directory), expected="a diffusers pipeline directory", got="a directory without model_index.json", fix=fix)
    try:
        class_name = json.loads(index.read_text(encoding="utf-8"))["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            str(index), expected="JSON with the key _class_name", got="something else", fix="save the pipeline again"
        ) from error
    known = []
    for name in _ADAPTERS:
        adapter = importlib.import_module(f"dexport.exporter.pipelines.{name}")
        known += adapter.CLASSES
        if class_name in adapter.CLASSES:
            return _opened(_with_frames(adapter.open_pipeline, class_name, frames), directory, class_name)
    fix = "write an adapter in exporter/pipelines"
    raise UserError(str(index), expected=f"one of {', '.join(known)}", got=class_name, fix=fix)


def _with_frames(open_pipeline: Callable[..., Pipeline], class_name: str, frames: int | None) -> Callable[..., Pipeline]:
    if frames is None:
        return open_pipeline
    if "frames" not in inspect.signature(open_pipeline).parameters:
        raise UserError("frames", expected="none for a pipeline that makes pictures", got=f"{frames} for {class_name}", fix="leave it out")
    return functools.partial(open_pipeline, frames=frames)


def _opened(open_pipeline: Callable[..., Pipeline], directory: Path, class_name: str) -> Pipeline:
    try:
        return open_pipeline(directory, class_name)
    except (FileNotFoundError, OSError) as error:
        missing = getattr(error, "filename", None) or str(error).splitlines()[0]
        raise UserError(
            str(directory), expected="a complete pipeline directory", got=f"without {missing}", fix="save the pipeline again"
        ) from error
    except (ValueError, KeyError) as error:
        raise UserError(
            str(directory), expected="configurations that can be read", got=f"{error}", fix="save the pipeline again"
        ) from error
