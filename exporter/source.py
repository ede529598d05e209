"""Where a model comes from: a local pipeline directory, or a hub id that is downloaded into the hub's own cache."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from dexport.errors import UserError

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_WANTED = ["*.json", "*.safetensors", "*.model", "*.txt", "**/*.json", "**/*.safetensors", "**/*.model", "**/*.txt"]


def local_directory(model: str) -> Path:
    """The directory of a pipeline; a hub id is downloaded first (safetensors, configurations and tokenizers only).

    Raises:
        UserError: neither a directory nor a hub id that can be downloaded.
    """
    path = Path(model).expanduser()
    if path.exists():
        return path
    if not _HUB_ID.fullmatch(model) or model.startswith((".", "/")):
        fix = "give the directory that save_pretrained wrote, or a hub id such as owner/name"
        raise UserError(model, expected="a diffusers pipeline directory", got="no such directory", fix=fix)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=_WANTED))
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        fix = "check the id and the network, or give a local directory"
        raise UserError(
            model, expected="a local directory or a hub id", got=f"no such directory, and the hub says: {reason}", fix=fix
        ) from error


def source_hash(directory: Path) -> str:
    """sha256 over the names and sizes of all files and the contents of the configurations.

    Weights enter by name and size only: reading gigabytes just to name them would double the time of a kit build.
    """
    digest = hashlib.sha256()
    for file in sorted(p for p in directory.rglob("*") if p.is_file()):
        digest.update(f"{file.relative_to(directory).as_posix()}:{file.stat().st_size}\n".encode())
        if file.suffix == ".json":
            digest.update(file.read_bytes())
    return digest.hexdigest()
