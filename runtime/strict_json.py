"""JSON from strangers: bounded in bytes and depth, without the liberties that Python's parser takes.

Refused: more bytes than allowed, anything that is not UTF-8 (a lone surrogate in an escape included), nesting deeper
than 32, a key given twice, NaN and infinities (also as 1e999), integers beyond 64 bits.
"""

import json
import math
from collections.abc import Iterable
from typing import Any

from dexport.errors import UserError

MAX_DEPTH = 32
_MAX_INTEGER_DIGITS = 20  # of the longest 64-bit integer, sign included
_MOST_NAMES = 20  # in an error
_REBUILD = "get the bundle again or rebuild it"


def parse_json(data: bytes, where: str, *, max_bytes: int) -> Any:
    """Parses one JSON document.

    Args:
        data: the document's bytes.
        where: what to call it in an error.
        max_bytes: the most that is even looked at. Parsed, a document takes up to about 30 times its bytes.

    Raises:
        UserError: the document is too long, malformed, or uses what is refused above.
    """
    if len(data) > max_bytes:
        raise UserError(where, expected=f"at most {max_bytes} bytes of JSON", got=f"{len(data)} bytes", fix=_REBUILD)
    try:
        document = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_object_without_duplicates,
            parse_constant=_refuse_number,
            parse_float=_finite_float,
            parse_int=_short_int,
        )
        _check_depth(document)
        json.dumps(document, ensure_ascii=False).encode("utf-8")  # an escape like \ud800 parses but is no text
    except (ValueError, RecursionError) as error:
        reason = "nesting too deep" if isinstance(error, RecursionError) else str(error)
        raise UserError(where, expected="well-formed JSON in UTF-8", got=shown(reason), fix=_REBUILD) from None
    return document


def shown(value: object, limit: int = 100) -> str:
    """A stranger's value as one short printable line: control characters escaped, the middle of long text left out."""
    if isinstance(value, (dict, list)):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    text = value if isinstance(value, str) else repr(value)
    text = "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text[: 4 * limit])
    return text if len(text) <= limit else f"{text[: limit // 2]}...{text[-limit // 2 :]}"


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} twice in one object")
    return result


def _refuse_number(text: str) -> float:
    raise ValueError(f"the number {text}, which JSON does not have")


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text}, which does not fit a float")
    return value


def _short_int(text: str) -> int:
    if len(text) > _MAX_INTEGER_DIGITS:
        raise ValueError(f"an integer of {len(text)} digits")
    return int(text)


def _check_depth(document: Any) -> None:
    level = [document]
    for _ in range(MAX_DEPTH):
        level = [child for node in level for child in _children(node)]
        if not level:
            return
    raise ValueError(f"nesting deeper than {MAX_DEPTH}")


def _children(node: Any) -> list[Any]:
    if isinstance(node, dict):
        return list(node.values())
    return node if isinstance(node, list) else []


def names_text(names: Iterable[str]) -> str:
    """Up to 20 names in alphabetical order: "a, b", "(none)"."""
    listed = sorted(names)
    return ", ".join([*listed[:_MOST_NAMES], *(["..."] if len(listed) > _MOST_NAMES else [])]) or "(none)"
