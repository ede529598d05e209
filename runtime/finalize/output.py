"""Where a finished bundle may go."""

from __future__ import annotations

from pathlib import Path

from dexport.errors import UserError
from dexport.runtime.bundle_writer import check_output


def check_place(kit: Path, out: Path) -> None:
    """Refuses a place whose contents would be lost: everything but a bundle, and the kit itself.

    Raises:
        UserError: `out` is the kit, or holds something else than a complete bundle of the same form.
    """
    if out.resolve() == kit.resolve():
        raise UserError(str(out), expected="another name than the kit's", got="the same", fix="choose one with -o")
    check_output(out.resolve())
