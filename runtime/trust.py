"""Which machine code the user trusts: sha256 of TensorRT plans and plugin libraries that were built on this machine.

They stand in one text file, one per line, `<sha256>  <what it is>`; blank lines and lines that begin with # are skipped.
Deleting a line withdraws the trust. The file counts only if nobody but its owner can write to it.
"""

import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from dexport.errors import UserError
from dexport.runtime.strict_json import shown

_LINE = re.compile(r"([0-9a-f]{64})(?:\s.*)?")
_MAX_BYTES = 4 << 20


def default_trust_file() -> Path:
    """`dexport/trusted-code` in the user's configuration folder: $XDG_CONFIG_HOME or ~/.config."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "dexport" / "trusted-code"


def trusted_hashes(file: Path) -> frozenset[str]:
    """The sha256 values (hexadecimal) in `file`; none if there is no such file.

    Raises:
        UserError: others can write to the file, or a line is not of the form above.
    """
    try:
        status = file.stat()
    except FileNotFoundError:
        return frozenset()
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = f"mode {stat.S_IMODE(status.st_mode):o}"
        raise UserError(str(file), expected="a file that only its owner can write to", got=mode, fix=f"check it, then: chmod 600 {file}")
    if status.st_size > _MAX_BYTES:
        raise UserError(str(file), expected=f"at most {_MAX_BYTES} bytes", got=f"{status.st_size}", fix="delete what is not needed")
    return frozenset(_parse(file))


def trust(hashes: Mapping[str, str], file: Path) -> None:
    """Adds {sha256: what it is} to the trust file; values that it has already are left out.

    One write with O_APPEND, so that two processes may do it at once.
    """
    known = trusted_hashes(file)
    lines = "".join(f"{sha256}  {shown(what)}\n" for sha256, what in hashes.items() if sha256 not in known)
    if not lines:
        return
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "wb", buffering=0) as out:
        out.write(lines.encode())


def _parse(file: Path) -> Iterator[str]:
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise UserError(f"{file}:{number}", expected="a sha256 and a comment", got=f"'{shown(line)}'", fix="delete the line")
        yield match[1]
