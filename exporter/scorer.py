"""Scorers: a function of the user's that says how well a picture shows its prompt, loaded from a file that the user names."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dexport.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

Array = npt.NDArray[Any]
Scorer = Callable[[str, Array], float]
"""(prompt, picture uint8 [H, W, 3] or video uint8 [F, H, W, 3]) -> a number, larger for better; called from one thread."""


def load_scorer(spec: str) -> Scorer:
    """The function of "FILE.py:FUNCTION". The file is executed, as a script beside its neighbours would be.

    Raises:
        UserError: no such file or function, or the file cannot be executed.
    """
    name, colon, function = spec.rpartition(":")
    path = Path(name).expanduser()
    if not colon or not function.isidentifier() or path.suffix != ".py":
        raise UserError("--scorer", expected="FILE.py:FUNCTION", got=repr(spec), fix="write for example detector.py:score")
    if not path.is_file():
        raise UserError(f"--scorer {spec}", expected="a Python file", got=f"no file {path}", fix="check the path")
    found = importlib.util.spec_from_file_location(path.stem, path)
    assert found is not None and found.loader is not None, "a .py file always has a loader"
    module = importlib.util.module_from_spec(found)
    with _importable(path.resolve().parent):
        try:
            found.loader.exec_module(module)
        except Exception as error:
            got = f"{type(error).__name__}: {error}"
            raise UserError(f"--scorer {spec}", expected="a file that can be imported", got=got, fix="run it with Python first") from error
    scorer = getattr(module, function, None)
    if not callable(scorer):
        have = ", ".join(sorted(n for n, v in vars(module).items() if callable(v) and not n.startswith("_"))) or "no functions"
        raise UserError(f"--scorer {spec}", expected=f"a function {function}", got=have, fix="name a function of the file")
    return scorer  # type: ignore[no-any-return]


def scores(scorer: Scorer, prompts: Sequence[str], pictures: Array) -> Array:
    """The score of every picture, float64 [n].

    Raises:
        UserError: the scorer raises, or returns anything but a finite number; the prompt is named.
    """
    return np.array([_score(scorer, prompt, picture) for prompt, picture in zip(prompts, pictures, strict=True)], np.float64)


def _score(scorer: Scorer, prompt: str, picture: Array) -> float:
    try:
        value = float(scorer(prompt, picture))
    except Exception as error:
        got = f"{type(error).__name__}: {error}"
        raise UserError(f"the scorer, prompt {prompt!r}", expected="a number", got=got, fix="give prompts that the scorer knows") from error
    if not np.isfinite(value):
        raise UserError(f"the scorer, prompt {prompt!r}", expected="a finite number", got=str(value), fix="correct the scorer")
    return value


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Lets modules of a folder be imported by name, as for a script that is run there."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
