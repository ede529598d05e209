"""The work folder: what is finished stays, what is not never carries its name, and nothing counts for being there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dexport.errors import UserError
from dexport.runtime.finalize.work import RECORD, WorkFolder, key_of


def _build(folder: Path) -> dict[str, Any]:
    (folder / "a.bin").write_bytes(b"engine")
    return {"seconds": 1.5}


def test_a_finished_engine_is_found_again(tmp_path: Path) -> None:
    with WorkFolder(tmp_path / "out.dxb") as work:
        assert work.finished("a", "key", ["a.bin"]) is None
        made = work.make("a", "key", ["a.bin"], _build)
        assert work.finished("a", "key", ["a.bin"]) == made and made.seconds == 1.5
        assert work.finished("a", "another key", ["a.bin"]) is None
    with WorkFolder(tmp_path / "out.dxb") as work:
        assert work.finished("a", "key", ["a.bin"]) == made
        (made.folder / "a.bin").write_bytes(b"damage")
        assert work.finished("a", "key", ["a.bin"]) is None
        work.remove()
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "record", ["", "[]", "{}", '{"key": "key", "hashes": {"b.bin": "0"}}', '{"key": "key", "hashes": []}', '{"key": "key", "hashes": {}}']
)
def test_a_record_that_we_did_not_write_counts_for_nothing(tmp_path: Path, record: str) -> None:
    with WorkFolder(tmp_path / "out") as work:
        made = work.make("a", "key", ["a.bin"], _build)
        (made.folder / RECORD).write_text(record)
        assert work.finished("a", "key", ["a.bin"]) is None


def test_an_engine_is_finished_with_exactly_its_files(tmp_path: Path) -> None:
    with WorkFolder(tmp_path / "out") as work:
        work.make("a", "key", ["a.bin"], _build)
        assert work.finished("a", "key", ["a.bin", "layers.json"]) is None and work.finished("a", "key", []) is None


def test_a_failed_build_leaves_its_log_and_no_engine(tmp_path: Path) -> None:
    def fail(folder: Path) -> dict[str, Any]:
        (folder / "build.log").write_text("why")
        raise ValueError

    with WorkFolder(tmp_path / "out") as work:
        with pytest.raises(ValueError):
            work.make("a", "key", ["a.bin"], fail)
        assert (work.path / "a.partial/build.log").read_text() == "why" and not (work.path / "a").exists()
        work.make("a", "key", ["a.bin"], _build)
        assert json.loads((work.path / "a" / RECORD).read_text())["key"] == "key"
        assert not (work.path / "a.partial").exists()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="expected a folder to work in, got Not a directory"):
        WorkFolder(tmp_path / "file" / "out")


def test_keys_differ_with_everything_in_them() -> None:
    assert key_of("a", ["b"], {"c": 1}) == key_of("a", ["b"], {"c": 1}) != key_of("a", ["b"], {"c": 2})
