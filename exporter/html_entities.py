"""HTML character references as a normalizer of the tokenizers library: what `html.unescape` does, without Python at run time.

One Replace per character: its names ("&amp;"), and its number in decimal and hexadecimal, with or without the semicolon. After them the 106
names that HTML allows without a semicolon, as prefixes ("&notit;" is "¬it;").

Numbers are known for the named characters, Latin and its extensions, and general punctuation; the number of any other character stays as it
is written.
"""

from __future__ import annotations

import html.entities
from typing import Any

_AMPERSAND = "\ufdd0"  # a noncharacter stands for a new "&" until the pass is over, so that "&amp;lt;" takes two passes, as in Python
_NUMBERED = (*range(0x20, 0x7F), *range(0xA0, 0x250), *range(0x2010, 0x2045))
_WINDOWS = "€\x81‚ƒ„…†‡ˆ‰Š‹Œ\x8dŽ\x8f\x90‘’“”•–—˜™š›œ\x9džŸ"  # what the standard reads in &#128; to &#159;


def unescape_step() -> dict[str, Any]:
    """One pass of `html.unescape`, as the JSON of a normalizer."""
    names = html.entities.html5
    spellings: dict[str, list[str]] = {chr(code): [] for code in _NUMBERED}
    for name, text in names.items():
        spellings.setdefault(text, [])
        if name.endswith(";"):
            spellings[text].append(name)
    steps = [_replace({"Regex": f"&(?:{'|'.join(written + _numbers(text))})"}, text) for text, written in spellings.items()]
    bare = sorted((name for name in names if not name.endswith(";")), key=len, reverse=True)
    steps += [_replace({"String": f"&{name}"}, names[name]) for name in bare]
    return {"type": "Sequence", "normalizers": [*steps, {"type": "Replace", "pattern": {"String": _AMPERSAND}, "content": "&"}]}


def _replace(pattern: dict[str, str], text: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": _AMPERSAND if text == "&" else text}


def _numbers(text: str) -> list[str]:
    if len(text) > 1:
        return []
    codes = [ord(text)] + [0x80 + place for place, character in enumerate(_WINDOWS) if character == text]
    return [f"#(?:0*{code}(?:;|(?![0-9]))|[xX]0*{_hexadecimal(code)}(?:;|(?![0-9a-fA-F])))" for code in codes]


def _hexadecimal(code: int) -> str:
    return "".join(f"[{digit}{digit.upper()}]" if digit.isalpha() else digit for digit in f"{code:x}")
