"""Scorers come from files that the user names; what is wrong with them is said in one line."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from dexport.errors import UserError
from dexport.exporter.scorer import load_scorer, scores

PICTURES = np.zeros((2, 8, 8, 3), np.uint8)


def _file(folder: Path, text: str, name: str = "marks.py") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_scorer_finds_the_modules_beside_it(tmp_path: Path) -> None:
    _file(tmp_path, "WEIGHT = 0.25", "beside_the_scorer.py")
    path = _file(tmp_path, "import beside_the_scorer\ndef score(prompt, picture):\n    return beside_the_scorer.WEIGHT * len(prompt)")
    assert scores(load_scorer(f"{path}:score"), ["ab", "abcd"], PICTURES).tolist() == [0.5, 1.0]
    assert str(tmp_path) not in sys.path


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("marks.py", "FILE.py:FUNCTION"),
        ("marks.txt:score", "FILE.py:FUNCTION"),
        ("marks.py:1", "FILE.py:FUNCTION"),
        ("absent.py:score", "no file absent.py"),
        ("marks.py:other", "got score"),
        ("broken.py:score", "SyntaxError"),
    ],
)
def test_what_is_wrong_with_a_scorer_is_named(spec: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _file(tmp_path, "def score(prompt, picture):\n    return 1")
    _file(tmp_path, "def score(", "broken.py")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--scorer") as caught:
        load_scorer(spec)
    assert says in str(caught.value)


def test_a_scorer_that_fails_names_the_prompt() -> None:
    def strict(prompt: str, _picture: object) -> float:
        if prompt == "bad":
            raise ValueError("no sentence of mine")
        return float("nan")

    with pytest.raises(UserError, match=r"prompt 'bad'.*no sentence of mine"):
        scores(strict, ["bad", "x"], PICTURES)
    with pytest.raises(UserError, match=r"prompt 'x'.*a finite number, got nan"):
        scores(strict, ["x", "bad"], PICTURES)
