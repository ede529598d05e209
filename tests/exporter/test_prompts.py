"""Prompt files, good and bad."""

from __future__ import annotations

from pathlib import Path

import pytest

from dexport.errors import UserError
from dexport.exporter.prompts import MOST_CHARACTERS, read_prompts


def _file(folder: Path, content: bytes) -> Path:
    path = folder / "prompts.txt"
    path.write_bytes(content)
    return path


def test_one_per_line_without_blanks(tmp_path: Path) -> None:
    content = "\ufeffa red circle\r\n\n   \n  ein grüner Kreis  \nlast".encode()
    assert read_prompts(_file(tmp_path, content)) == ("a red circle", "ein grüner Kreis", "last")


@pytest.mark.parametrize("content", [b"", b"\n \n\t\n"])
def test_an_empty_file_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UserError, match="one prompt per line, got an empty file"):
        read_prompts(_file(tmp_path, content))


def test_other_encodings_are_refused_with_line_and_byte(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="UTF-8 text, got byte 0xfc at position 3 of line 2"):
        read_prompts(_file(tmp_path, b"fine\ngr\xfcn\n"))


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        read_prompts(tmp_path / "none.txt")
    with pytest.raises(UserError, match="directory"):
        read_prompts(tmp_path)


def test_a_line_that_is_too_long_is_refused(tmp_path: Path) -> None:
    content = b"fine\n" + b"x" * (MOST_CHARACTERS + 1)
    with pytest.raises(UserError, match=f"at most {MOST_CHARACTERS} characters, got {MOST_CHARACTERS + 1} in line 2"):
        read_prompts(_file(tmp_path, content))
