"""Character references in prompts, against Python's own html.unescape."""

import html
from html.entities import html5

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from dexport.exporter.html_entities import unescape_step


@pytest.fixture(scope="module")
def unescape() -> object:
    import json

    document = json.loads(Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).to_str())
    document["normalizer"] = unescape_step()
    return Tokenizer.from_str(json.dumps(document)).normalizer


_CODES = st.sampled_from([0x22, 0x26, 0x27, 0x3C, 0x41, 0x80, 0x99, 0xA0, 0xE9, 0x141, 0x2019, 0x2026, 0x1D54D])
_PIECES = st.one_of(
    st.sampled_from(sorted(html5)).map("&{}".format),
    _CODES.map("&#{};".format),
    _CODES.map("&#x{:X};".format),
    _CODES.map("&#X00{:x} ".format),
    st.sampled_from(["a ", " &", "x & y", "; ", "&notit;", "&;", "#", "&unknown;", "&ampamp;", "&#39 ", "😀"]),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(_PIECES, max_size=6).map("".join))
def test_one_pass_is_what_python_does(unescape: object, text: str) -> None:
    assert unescape.normalize_str(text) == html.unescape(text)  # type: ignore[attr-defined]


def test_an_escaped_reference_takes_two_passes(unescape: object) -> None:
    once = unescape.normalize_str("&amp;lt;b&amp;gt;")  # type: ignore[attr-defined]
    assert once == "&lt;b&gt;" and unescape.normalize_str(once) == "<b>"  # type: ignore[attr-defined]
