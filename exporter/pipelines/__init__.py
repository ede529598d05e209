"""Pipeline families: one adapter file each; `open_directory` finds the one that a pipeline directory needs."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

from dexport.errors import UserError
from dexport.exporter.pipelines.family import Pipeline

_ADAPTERS = ("pixart", "dit", "stable_diffusion", "stable_diffusion_xl", "sd3", "flux", "wan")


def open_directory(directory: Path) -> Pipeline:
    """Opens a diffusers pipeline directory.

    Raises:
        UserError: not a pipeline directory, or a pipeline class without an adapter.
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
            return _opened(adapter.open_pipeline, directory, class_name)
    fix = "write an adapter in exporter/pipelines"
    raise UserError(str(index), expected=f"one of {', '.join(known)}", got=class_name, fix=fix)


def _opened(open_pipeline: object, directory: Path, class_name: str) -> Pipeline:
    assert callable(open_pipeline)
    try:
        pipeline = open_pipeline(directory, class_name)
    except (FileNotFoundError, OSError) as error:
        missing = getattr(error, "filename", None) or str(error).splitlines()[0]
        raise UserError(
            str(directory), expected="a complete pipeline directory", got=f"without {missing}", fix="save the pipeline again"
        ) from error
    except (ValueError, KeyError) as error:
        raise UserError(
            str(directory), expected="configurations that can be read", got=f"{error}", fix="save the pipeline again"
        ) from error
    assert isinstance(pipeline, Pipeline)
    return pipeline
