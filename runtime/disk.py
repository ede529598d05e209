"""A disk that is full: how the system says it, and what the user is told."""

from __future__ import annotations

import errno
from pathlib import Path

from dexport.errors import Failure


def is_full(error: BaseException | None) -> bool:
    """Whether something was not written because there is no room for it, or for this user's files."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def disk_full(place: Path, expected: str, got: str, remedy: str = "or write to another disk with -o") -> Failure:
    """What to raise; `remedy` goes on after "free some space"."""
    return Failure(str(place), expected=expected, got=got, fix=f"free some space {remedy}")
