"""Tokenizers of a pipeline as one self-contained tokenizer.json each.

Everything a pipeline does to a prompt before the text encoder sees it goes into the file: cleaning into its normalizer, the length
into its truncation and padding. The runtime then needs no rule of its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from dexport.errors import UserError
from dexport.exporter.html_entities import unescape_step
from dexport.exporter.pipelines.family import Text

# The white space that Python's str.strip removes, as a regular expression for the tokenizers library.
_CLEANING: dict[str, dict[str, Any]] = {
    "html": unescape_step(),
    "lower": {"type": "Lowercase"},
    "strip": {"type": "Strip", "strip_left": True, "strip_right": True},
    "whitespace": {"type": "Replace", "pattern": {"Regex": r"[\s\x1c-\x1f]+"}, "content": " "},
}


def tokenizer_json(directory: Path, text: Text) -> str:
    """The tokenizer of `directory / text.folder` with the pipeline's cleaning and length built in.

    Raises:
        UserError: there is no tokenizer, or it has no form that the tokenizers library can read.
    """
    tokenizer, pad_id, pad_token = _load(directory / text.folder)
    tokenizer.enable_truncation(max_length=text.length)
    tokenizer.enable_padding(length=text.length, pad_id=pad_id, pad_token=pad_token)
    document = json.loads(tokenizer.to_str())
    steps = [_CLEANING[step] for step in text.clean]
    if document["normalizer"] is not None:
        steps.append(document["normalizer"])
    if steps:
        document["normalizer"] = {"type": "Sequence", "normalizers": steps}
    return json.dumps(document, ensure_ascii=False)


def _load(folder: Path) -> tuple[Tokenizer, int, str]:
    from transformers import AutoTokenizer

    if not folder.is_dir():
        raise UserError(str(folder), expected="a tokenizer folder", got="no such folder", fix="complete the pipeline directory")
    try:
        loaded = AutoTokenizer.from_pretrained(folder)
        tokenizer = Tokenizer.from_str(loaded.backend_tokenizer.to_str())
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(str(folder), expected="a tokenizer with a fast form", got=reason, fix="save it with a tokenizer.json") from error
    return tokenizer, int(loaded.pad_token_id or 0), str(loaded.pad_token)
