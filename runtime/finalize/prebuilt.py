"""What `kit/build.sh` of a Jetson kit has built on a device without dexport, taken over into a finished bundle."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dexport.errors import UserError
from dexport.runtime.strict_json import shown
from dexport.targets.target import Target
from dexport.targets.tensorrt import dotted

_MADE_BY = re.compile(r"TensorRT (\d+) (?:([0-9a-f,]{64,}) )?(.*)")
"""What kit/build.sh notes beside an engine: TensorRT's version, the sorted sha256 of the model's files, and the flags."""


def take(
    engines: Path, name: str, files: Sequence[str], hashes: Sequence[str], options: Sequence[str] | None, target: Target, folder: Path
) -> dict[str, Any]:
    """Copies the files of an engine or of a plugin's library into `folder`; returns nothing to note of the build, which nobody watched.

    Args:
        engines: the folder that build.sh has filled.
        hashes: sha256 of what it was made of.
        options: with which it was made; None: any.

    Raises:
        UserError: a file is missing, or was made with another TensorRT or from another kit.
    """
    stamp = engines / f"{name}.made-by"
    fix = "run `bash kit/build.sh` of this kit on the device and copy its folder engines/"
    try:
        found = _MADE_BY.fullmatch(stamp.read_text(encoding="utf-8", errors="replace").strip())
    except OSError as error:
        raise UserError(str(stamp), expected="what kit/build.sh writes", got=error.strerror or "an error", fix=fix) from error
    assert target.tensorrt is not None
    code, models, flags = (int(found[1]), found[2] or "none", found[3]) if found else (0, "none", "")
    major, minor = target.tensorrt[:2]
    if code // 100 != major * 100 + minor:
        raise UserError(str(stamp), expected=f"TensorRT {dotted((major, minor))}", got=f"{code // 10000}.{code // 100 % 100}", fix=fix)
    if options is not None and flags != " ".join(options):
        raise UserError(str(stamp), expected="the flags of this kit", got=flags or "none", fix=fix)
    if models != ",".join(sorted(hashes)):
        raise UserError(str(stamp), expected="the sha256 of this kit's model", got=shown(models), fix=fix)
    for file in files:
        try:
            shutil.copyfile(engines / file, folder / file)
        except FileNotFoundError as error:
            raise UserError(str(engines / file), expected="what kit/build.sh writes", got="no such file", fix=fix) from error
    return {}
