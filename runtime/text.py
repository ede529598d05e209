"""Prompts become token ids, with the bundle's own tokenizer.json; no rule of any pipeline is in here."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tokens:
    """ids and mask: int64 [prompts, length]; the mask is 1 where a token stands for text."""

    ids: npt.NDArray[np.int64]
    mask: npt.NDArray[np.int64]


def tokenize(tokenizer: Tokenizer, prompts: Sequence[str], name: str) -> Tokens:
    """Encodes prompts; padding, truncation and cleaning are part of the tokenizer. What is cut off is logged as a warning."""
    encoded = [tokenizer.encode(prompt) for prompt in prompts]
    for prompt, encoding in zip(prompts, encoded):
        if encoding.overflowing:
            lost = " ".join(tokenizer.decode(part.ids) for part in encoding.overflowing).strip()
            _log.warning("%s takes %d tokens; this part of the prompt is left out: %r", name, len(encoding.ids), lost or prompt)
    return Tokens(
        np.array([e.ids for e in encoded], np.int64),
        np.array([e.attention_mask for e in encoded], np.int64),
    )
