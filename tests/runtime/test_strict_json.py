import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dexport.errors import UserError
from dexport.runtime.strict_json import MAX_DEPTH, names_text, parse_json, shown


@pytest.mark.parametrize(
    ("data", "got"),
    [
        (b"{", "Expecting property name"),
        (b"[1,]", "Illegal trailing comma|Expecting value"),
        (b"\xff\xfe", "'utf-8' codec can't decode"),
        (b'{"a": 1, "b": 2, "a": 3}', "the key 'a' twice in one object"),
        (b'{"a": NaN}', "the number NaN, which JSON does not have"),
        (b"-Infinity", "the number -Infinity"),
        (b"1e999", "the number 1e999, which does not fit a float"),
        (b"1" * 100, "an integer of 100 digits"),
        (b"[" * 100_000, "nesting too deep"),
        (b"[" * 40 + b"]" * 40, f"nesting deeper than {MAX_DEPTH}"),
        (rb'"\ud800"', "surrogates not allowed"),
        (b"", "Expecting value"),
    ],
)
def test_what_is_no_plain_json_is_refused_in_one_line(data: bytes, got: str) -> None:
    with pytest.raises(UserError, match=f"m.json: expected well-formed JSON in UTF-8, got .*(?:{got}).*; get the bundle again") as caught:
        parse_json(data, "m.json", max_bytes=1 << 20)
    assert "\n" not in str(caught.value)


def test_a_long_document_is_not_even_parsed() -> None:
    with pytest.raises(UserError, match=r"m.json: expected at most 10 bytes of JSON, got 11 bytes"):
        parse_json(b"[" * 11, "m.json", max_bytes=10)


def test_depth_counts_to_the_limit() -> None:
    data = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH
    assert parse_json(data, "m.json", max_bytes=100) is not None


@settings(deadline=None, derandomize=True)
@given(st.text(max_size=300))
def test_shown_text_is_one_short_printable_line(text: str) -> None:
    line = shown(text)
    assert line.isprintable() and len(line) <= 103


def test_shown_says_what_containers_are() -> None:
    assert shown({"a": 1}) == "an object of 1" and shown([1, 2]) == "a list of 2" and shown(None) == "None"
    assert shown("a\x1b[31m\n") == r"a\x1b[31m\n"
    assert re.fullmatch(r"x{50}\.\.\.x{50}", shown("x" * 1000))


def test_errors_list_names_and_not_too_many() -> None:
    assert names_text([]) == "(none)"
    assert names_text({"b": 1, "a": 2}) == "a, b"
    assert names_text(str(n) for n in range(10, 32)) == ", ".join(map(str, range(10, 30))) + ", ..."
