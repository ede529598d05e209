"""What a finished bundle may replace: a bundle, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from dexport.errors import UserError
from dexport.runtime.finalize.output import check_place
from tests.runtime.finalize.small_kit import small_kit


def test_new_names_and_bundles_are_fine(tmp_path: Path) -> None:
    kit = small_kit(tmp_path / "kit.dxb")
    check_place(kit, tmp_path / "new.dxb")
    check_place(kit, small_kit(tmp_path / "other.dxb"))


def test_the_kit_and_strange_files_are_refused(tmp_path: Path) -> None:
    kit, notes, link = small_kit(tmp_path / "kit.dxb"), tmp_path / "notes.dxb", tmp_path / "link.dxb"
    notes.write_text("mine")
    with pytest.raises(UserError, match=r"notes\.dxb: expected nothing there, or a bundle to replace, got something else"):
        check_place(kit, notes)
    link.symlink_to(kit)
    for same in (kit, link, tmp_path / "." / "kit.dxb"):
        with pytest.raises(UserError, match="expected another name than the kit's, got the same; choose one with -o"):
            check_place(kit, same)
