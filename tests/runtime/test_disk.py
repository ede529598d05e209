"""Full disks are told from other trouble, and in one way wherever they are met."""

from __future__ import annotations

import ast
import errno
from pathlib import Path

import pytest

from dexport.runtime.disk import disk_full, is_full


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (PermissionError(errno.EACCES, "Permission denied"), False),
        (OSError("no number"), False),
        (ValueError(errno.ENOSPC), False),
        (None, False),
    ],
)
def test_tells_full_disks(error: BaseException | None, full: bool) -> None:
    assert is_full(error) is full


def test_says_what_to_do() -> None:
    here = disk_full(Path("out.dxb"), "5 bytes free", "3")
    assert str(here) == "out.dxb: expected 5 bytes free, got 3; free some space or write to another disk with -o"
    assert str(disk_full(Path("kit"), "room", "none", "there")).endswith("; free some space there")


def test_nobody_else_asks_for_the_numbers_of_errors() -> None:
    """ENOSPC alone is half of it: a quota is exceeded with another number."""
    root = Path(__file__).parent.parent.parent
    files = [path for room in ("dexport", "exporter", "runtime") for path in (root / room).glob("*.py" if room == "dexport" else "**/*.py")]
    named = [
        str(path.relative_to(root))
        for path in files
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in ("ENOSPC", "EDQUOT")
    ]
    assert set(named) == {"runtime/disk.py"}
