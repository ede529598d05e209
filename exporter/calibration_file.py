"""The file of a calibration that is not finished: what the accumulators hold, and how far it is.

safetensors: tensors "component/number/field" as the accumulators have them, the chosen samples, everything else as JSON in the metadata.
It replaces its predecessor atomically, so that whatever stops a calibration leaves the last whole batch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from dexport.errors import Failure, UserError

_KEY = "dexport.calibration"


@dataclass(frozen=True)
class Progress:
    """How far a calibration is.

    Attributes:
        pictures: made so far.
        counts: samples to take at every step, None while not decided.
    """

    pictures: int
    counts: tuple[int, ...] | None


def resume_path(path: Path) -> Path:
    """Where the unfinished calibration for the statistics file `path` lies."""
    return path.with_name(f"{path.name}.resume")


def save_progress(path: Path, tensors: Mapping[str, torch.Tensor], identity: Mapping[str, Any], progress: Progress) -> None:
    """Writes the file, whole or not at all.

    Raises:
        Failure: the disk is full, or the folder cannot be written to.
    """
    about = {"identity": identity, "pictures": progress.pictures, "counts": progress.counts}
    new = path.with_name(f".{path.name}.new")
    try:
        safetensors.torch.save_file(dict(tensors), new, {_KEY: json.dumps(about)})
        with new.open("rb") as file:
            os.fsync(file.fileno())
        new.replace(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise Failure(str(path), expected="to be written", got=str(error), fix="make room, or choose another folder with -o") from error
    finally:
        new.unlink(missing_ok=True)


def load_progress(path: Path, tensors: Mapping[str, torch.Tensor], identity: Mapping[str, Any]) -> tuple[Progress, dict[str, torch.Tensor]]:
    """Reads a file of `save_progress` into the given tensors, one at a time.

    Returns:
        How far it is, and the tensors of the file that have other names.

    Raises:
        UserError: it is of another calibration (names the first difference), damaged, or something else.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})[_KEY])
            _check_same(str(path), identity, about["identity"])
            rest = {}
            for name in file.keys():  # noqa: SIM118 - not a dict
                if name in tensors:
                    tensors[name].copy_(file.get_tensor(name))
                else:
                    rest[name] = file.get_tensor(name)
            missing = tensors.keys() - set(file.keys())
        if missing:
            raise KeyError(sorted(missing)[0])
        counts = about["counts"]
        return Progress(int(about["pictures"]), None if counts is None else tuple(counts)), rest
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, safetensors.SafetensorError) as error:
        fix = "delete it to begin anew"
        raise UserError(str(path), expected="an unfinished calibration", got="something else or a damaged file", fix=fix) from error


def _check_same(where: str, mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    for key, wanted in json.loads(json.dumps(mine)).items():
        if theirs.get(key) != wanted:
            fix = "repeat the command that began it, or delete the file to begin anew"
            got = f"{key} {_short(theirs.get(key))}"
            raise UserError(where, expected=f"an unfinished calibration with {key} {_short(wanted)}", got=got, fix=fix)


def _short(entry: Any) -> str:
    text = entry if isinstance(entry, str) else json.dumps(entry)
    return text if len(text) <= 60 else f"{text[:57]}..."
