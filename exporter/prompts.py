"""Prompt files: one prompt per line."""

from __future__ import annotations

from pathlib import Path

from dexport.errors import UserError

MOST_CHARACTERS = 4096
"""Of a line; no text encoder reads as much, so a longer one is not a list of prompts."""


def read_prompts(path: Path) -> tuple[str, ...]:
    """The prompts of a file, without the white space around them; blank lines are skipped.

    Raises:
        UserError: no such file, not UTF-8 (names the line and the byte), a line too long, no prompt in it.
    """
    where = f"prompts {path}"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(where, expected="a text file", got=error.strerror or "unreadable", fix="check the path") from error
    lines = [_decoded(line, number, where) for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").splitlines(), 1)]
    prompts = tuple(line.strip() for line in lines if line.strip())
    if not prompts:
        raise UserError(where, expected="one prompt per line", got="an empty file", fix="write at least one")
    return prompts


def _decoded(line: bytes, number: int, where: str) -> str:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        got = f"byte 0x{line[error.start]:02x} at position {error.start + 1} of line {number}"
        raise UserError(where, expected="UTF-8 text", got=got, fix="save the file as UTF-8") from error
    if len(text) > MOST_CHARACTERS:
        expected = f"lines of at most {MOST_CHARACTERS} characters"
        raise UserError(where, expected=expected, got=f"{len(text)} in line {number}", fix="write one prompt per line")
    return text
