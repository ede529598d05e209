"""The C++ reader of tokenizer.json gives the ids and masks of the tokenizers library, for every kind of tokenizer and any text."""

from __future__ import annotations

import json
import random
import subprocess
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tests.runtime.cpp import sample_tokenizers

_EXPORTED = ("exported_pixart", "exported_wan", "exported_clip")
_ODD = [
    *(
        "",
        " ",
        "  ",
        "\t\n",
        "\0",
        "a\0b",
        "\x01\x02",
        "\r\n",
        "a\r\nb",
        "\u00a0x\u3000",
        "\u202eabc\u202c",
        "\ufffd",
        "\U0010ffff",
        "\ue000",
    ),
    *("e\u0301", "E\u0301\u0323", "\u0301", "ª\u0301", "ﬁ\u0301", "각", "\u1112\u1161\u11ab", "か\u3099", "\u0958", "ａ\u0301", "ﷺ", "㌀"),
    *(
        "\U0001f468\u200d\U0001f469\u200d\U0001f467",
        "🇩🇪🇫🇷",
        "👍🏽",
        "\u200b\u200d",
        "\ufeff",
        "İstanbul",
        "ΣΑΣ",
        "ſ",
        "ǅ",
        "\u2581x",
        "▁▁a ▁ b",
    ),
    *("<pad>", "</s>", "a</s>b", " </s> ", "<extra_id_0> <extra_id_1>x", "<|endoftext|>", "a <|startoftext|>b", "[CLS]", "[MASK] x [MASK]"),
    *("x[MASK]", "Blue  red", "New York", "'s 'S don't", "a1b22c333", "…", "...", "&amp;amp;", "&lt;b&gt;", "&#65;&#x41;&notit;"),
    *("x" * 300, "red " * 60),
]
_LETTERS = (
    "abcde RED.,!?'-_0123 \t\n\u00a0\u200b\0\x01\x7f\x85\ufffd&;#<>/|[]éÉñüßœ\u0301\u0308\u0323\u20dd北京の한국שלוםمرحباहिन्दीไทย"
    "😀👍🏽\u200d❤\ufe0f▁ﬁ①½ⅷ™İıſ"
)


def _known(character: str) -> bool:
    """In Unicode 3.2, so that the older and the newer tables of all libraries agree on it."""
    return unicodedata.ucd_3_2_0.category(character) not in ("Cn", "Cs")


_ANY_TEXT = st.one_of(
    st.text(st.characters(exclude_categories=["Cs", "Cn"]).filter(_known), max_size=30),
    st.text(st.sampled_from(_LETTERS), max_size=30),
    st.lists(st.sampled_from([*sample_tokenizers.WORDS, *_ODD, " "]), max_size=8).map("".join),
)


def _texts(count: int) -> list[str]:
    """The same texts for every tokenizer: prompts, odd ones, characters at random, and mixtures."""
    chance = random.Random(1)
    mixed = [*sample_tokenizers.WORDS, *_ODD, *_LETTERS, " "]
    prompts = sample_tokenizers.corpus()[: count // 4]
    letters = ["".join(chance.choices(_LETTERS, k=chance.randint(1, 30))) for _ in range(count // 4)]
    mixtures = ["".join(chance.choices(mixed, k=chance.randint(1, 10))) for _ in range(count // 2)]
    return [*_ODD, *prompts, *letters, *mixtures]


class _Cpp:
    """The C++ tokenizer in a process of its own."""

    def __init__(self, program: Path, file: Path) -> None:
        self._process = subprocess.Popen([program, file], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.first = self._answer()

    def __call__(self, text: bytes) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(b"%d\n" % len(text) + text)
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        self._process.communicate(timeout=60)
        assert self._process.returncode == 0

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line)
        return answer


class Pair(NamedTuple):
    """One tokenizer in both languages."""

    name: str
    library: Tokenizer
    cpp: _Cpp


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return sample_tokenizers.exported(tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="module", params=[*sample_tokenizers.TRAINED, *_EXPORTED])
def pair(request: pytest.FixtureRequest, cpp_build: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    made = sample_tokenizers.TRAINED.get(request.param)
    content = made() if made is not None else request.getfixturevalue("exported")[request.param]
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    file.write_text(content, encoding="utf-8")
    cpp = _Cpp(cpp_build / "tests" / "tokenize", file)
    assert cpp.first == {"ready": True}
    yield Pair(request.param, Tokenizer.from_str(content), cpp)
    cpp.close()


def _same(pair: Pair, text: str) -> None:
    expected, got = pair.library.encode(text), pair.cpp(text.encode())
    assert "error" not in got, (text, got)
    assert (got["ids"], got["mask"]) == (expected.ids, expected.attention_mask), (text, expected.tokens)


def test_thousands_of_texts(pair: Pair) -> None:
    unescapes = pair.name == "exported_wan"  # with 3000 regular expressions, 6 ms in either language
    for text in _texts(200 if unescapes else 2000):
        _same(pair, text)


@settings(max_examples=150, deadline=None)
@given(text=_ANY_TEXT)
def test_any_text(pair: Pair, text: str) -> None:
    _same(pair, text)


def test_what_does_not_fit_is_counted(pair: Pair) -> None:
    whole = Tokenizer.from_str(pair.library.to_str())
    whole.no_truncation()
    whole.no_padding()
    text = "a small red circle " * 20
    got = pair.cpp(text.encode())
    assert got["left_out"] == len(whole.encode(text).ids) - sum(got["mask"]) and (pair.library.truncation is None or got["left_out"] > 0)


@pytest.mark.parametrize("text", [b"\xff", b"a\xc3", b"\xed\xa0\x80", b"\xc0\x80", b"\xf5\x80\x80\x80"])
def test_what_is_no_utf8_is_an_error_and_the_next_text_is_not(pair: Pair, text: bytes) -> None:
    assert pair.cpp(text)["error"].startswith("prompt: expected text in UTF-8, got ")
    _same(pair, "a red circle")


def test_a_damaged_charsmap_is_refused_or_harmless(cpp_build: Path, tmp_path: Path) -> None:
    """Whatever byte of it is wrong, nothing outside it is read: an error, or other ids."""
    content, answers = sample_tokenizers.unigram_with_bytes(), 0
    for at in range(0, 4000, 199):
        file = tmp_path / "tokenizer.json"
        file.write_text(sample_tokenizers.damaged_charsmap(content, at), encoding="utf-8")
        cpp = _Cpp(cpp_build / "tests" / "tokenize", file)
        if "ready" in cpp.first:
            got = [cpp(text.encode()) for text in ("a red circle", "ﬁne ①②③", "e\u0301")]
            answers += all("ids" in answer or "error" in answer for answer in got)
        cpp.close()
    assert answers > 0
