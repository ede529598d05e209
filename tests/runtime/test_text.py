"""Prompts become ids and masks; what does not fit is cut off with a warning that shows it."""

import logging

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from dexport.runtime.text import tokenize


def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({"<pad>": 0, "a": 1, "red": 2, "circle": 3, "<unk>": 4}, unk_token="<unk>"))
    tokenizer.add_special_tokens(["<pad>"])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(max_length=3)
    tokenizer.enable_padding(length=3, pad_id=0, pad_token="<pad>")
    return tokenizer


def test_ids_and_masks_have_the_length_of_the_tokenizer() -> None:
    tokens = tokenize(_tokenizer(), ["a red circle", "red", ""], "t5")
    assert np.array_equal(tokens.ids, [[1, 2, 3], [2, 0, 0], [0, 0, 0]])
    assert np.array_equal(tokens.mask, [[1, 1, 1], [1, 0, 0], [0, 0, 0]])
    assert tokens.ids.dtype == tokens.mask.dtype == np.int64


def test_what_is_cut_off_is_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        tokens = tokenize(_tokenizer(), ["a red circle", "a red circle a circle"], "t5")
    assert np.array_equal(tokens.ids[1], [1, 2, 3])
    assert [record.getMessage() for record in caplog.records] == ["t5 takes 3 tokens; this part of the prompt is left out: 'a circle'"]
