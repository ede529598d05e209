"""The one tokenizer.json in a bundle gives the token ids that the pipeline's own tokenizer gives."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from dexport.errors import UserError
from dexport.exporter.pipelines.family import Text
from dexport.exporter.text import tokenizer_json
from dexport.runtime.text import tokenize
from tests.pipelines import save_clip_tokenizer
from tests.pipelines_pixart import tiny_t5_tokenizer

_LENGTH = 12
_PROMPTS = st.lists(
    st.sampled_from(["a small red circle", "Red", "RED ", "  ", "\t", "\n", "&amp;", "&lt;b&gt;", "😀", "Ünïcode", "ß", "!", "x" * 40]),
    max_size=6,
)
_ANY_TEXT = st.one_of(_PROMPTS.map("".join), st.text(st.characters(exclude_categories=["Cs"]), max_size=30))


Pair = tuple[Tokenizer, Any]


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("t5")
    tiny_t5_tokenizer().save_pretrained(directory / "tokenizer")
    return directory


@pytest.fixture(scope="module")
def pixart(t5: Path) -> Pair:
    return _ours(t5, ("lower", "strip")), AutoTokenizer.from_pretrained(t5 / "tokenizer")


@pytest.fixture(scope="module")
def wan(t5: Path) -> Pair:
    return _ours(t5, ("html", "html", "whitespace", "strip")), AutoTokenizer.from_pretrained(t5 / "tokenizer")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    directory = tmp_path_factory.mktemp("clip")
    save_clip_tokenizer(directory / "tokenizer", "<|endoftext|>")
    return _ours(directory, ()), AutoTokenizer.from_pretrained(directory / "tokenizer")


def _ours(directory: Path, clean: tuple[str, ...]) -> Tokenizer:
    text = Text(name="t", folder="tokenizer", length=_LENGTH, ids="ids", clean=clean)
    return Tokenizer.from_str(tokenizer_json(directory, text))


def _same(pair: Pair, prompt: str, cleaned: str) -> None:
    ours, theirs = pair
    expected = theirs([cleaned], padding="max_length", max_length=_LENGTH, truncation=True, return_tensors="np")
    tokens = tokenize(ours, [prompt], "t")
    assert np.array_equal(tokens.ids, expected["input_ids"]), (prompt, cleaned)
    assert np.array_equal(tokens.mask, expected["attention_mask"])


@settings(max_examples=100, deadline=None)
@given(prompt=_ANY_TEXT)
@example("")
@example("  A  small   RED circle\n")
def test_t5_as_pixart_cleans(pixart: Pair, prompt: str) -> None:
    _same(pixart, prompt, prompt.lower().strip())


@settings(max_examples=100, deadline=None)
@given(prompt=_ANY_TEXT)
@example("")
def test_clip_as_it_comes(clip: Pair, prompt: str) -> None:
    _same(clip, prompt, prompt)


@settings(max_examples=100, deadline=None)
@given(prompt=_ANY_TEXT)
@example("a &amp;amp; b")
def test_t5_as_wan_cleans(wan: Pair, prompt: str) -> None:
    _same(wan, prompt, " ".join(html.unescape(html.unescape(prompt)).split()))


def test_a_missing_folder_and_a_broken_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a tokenizer folder, got no such folder; complete the pipeline directory"):
        _ours(tmp_path, ())
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"expected a tokenizer with a fast form, got .*; save it with a tokenizer\.json"):
        _ours(tmp_path, ())
