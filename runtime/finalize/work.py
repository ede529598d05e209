"""The work folder beside the output: finished engines, so that an interrupted finalize goes on where it stopped.

    OUT.finalize/
      lock                     held while someone works here
      inputs/                  ONNX files out of a .dxb, while they are needed
      denoiser-512x512/        an engine that is complete: its files, build.log and made.json
      denoiser-512x512.partial/

`made.json` says of what and how an engine was made (a key) and the sha256 of its files; an engine counts as finished only if both are
right and no file is missing. That finds damage and leftovers, not malice: whoever can write here can write a fitting record as well.
So machine code from here is used only if the user's trust file has it, see `finalize`.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from dexport.errors import UserError
from dexport.runtime.bundle_writer import file_entry

RECORD, LOG = "made.json", "build.log"


@dataclass(frozen=True)
class Made:
    """An engine that is complete.

    Attributes:
        folder: where its files are.
        key: of what and how it was made.
        hashes: sha256 of its files by name.
        seconds, peak_memory, least_free: of the build, see `process.Usage`; 0 where it was built elsewhere.
    """

    folder: Path
    key: str
    hashes: dict[str, str]
    seconds: float = 0.0
    peak_memory: int = 0
    least_free: int = 0


class WorkFolder:
    """The folder, locked for as long as the context lasts; it stays until `remove`.

    Args:
        out: the bundle that is to be written.

    Raises:
        UserError: another process works there, or the folder cannot be made.
    """

    def __init__(self, out: Path) -> None:
        self.path = out.with_name(f"{out.name}.finalize")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            fix = "check the permissions and the disk, or write somewhere else with -o"
            raise UserError(str(self.path), expected="a folder to work in", got=error.strerror or "an error", fix=fix) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            fix = "wait for it, or write somewhere else with -o"
            raise UserError(str(self.path), expected="a folder of our own", got="another finalize at work in it", fix=fix) from error

    def __enter__(self) -> WorkFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._lock)

    def remove(self) -> None:
        """Deletes all of it; the lock is held on until the context ends."""
        shutil.rmtree(self.path, ignore_errors=True)

    def finished(self, name: str, key: str, files: Sequence[str]) -> Made | None:
        """The engine of that name, if it was made in that way, and all its files are there and undamaged."""
        folder = self.path / name
        try:
            record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            made = Made(folder, **record)
            right = made.key == key and made.hashes.keys() == set(files)
            if right and all(file_entry(folder / file).sha256 == made.hashes[file] for file in files):
                return made
        except (OSError, ValueError, TypeError, AttributeError):  # absent, or not what `make` wrote
            pass
        return None

    def make(self, name: str, key: str, files: Sequence[str], build: Callable[[Path], dict[str, Any]]) -> Made:
        """Builds an engine in a folder that gets its name when it is complete.

        Args:
            files: names of what is kept of it.
            build: gets the empty folder, puts the files there and returns what to note of the build.
        """
        partial = self.path / f"{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        noted = build(partial)
        made = Made(self.path / name, key, {file: file_entry(partial / file).sha256 for file in files}, **noted)
        record = dataclasses.asdict(made)
        del record["folder"]
        (partial / RECORD).write_text(json.dumps(record), encoding="utf-8")
        for path in partial.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        shutil.rmtree(made.folder, ignore_errors=True)
        partial.rename(made.folder)
        return made


def key_of(*parts: Any) -> str:
    """One sha256 over anything that JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
