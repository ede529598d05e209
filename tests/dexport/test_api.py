"""`import dexport`: light, lazy, typed; build and load."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import dexport


def test_the_import_loads_nothing_heavy() -> None:
    code = "import sys; before = set(sys.modules); import dexport; print(*sorted(set(sys.modules) - before))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert loaded == ["dexport", "dexport.errors"]


def test_the_public_names() -> None:
    assert dexport.__all__ == ["DexportError", "Failure", "UserError", "build", "load"]
    assert dexport.__version__.count(".") == 2
    with pytest.raises(AttributeError, match="module 'dexport' has no attribute 'biuld'"):
        _ = dexport.biuld


def test_load_and_call_like_a_diffusers_pipeline(pixart_cpu: Path) -> None:
    steps = []
    with dexport.load(pixart_cpu) as pipe:
        pictures = pipe("a red circle", num_inference_steps=4, seed=1, callback_on_step_end=lambda *step: steps.append(step[1])).images
        again = pipe("a red circle", num_inference_steps=4, seed=1).images
    assert pictures[0].size == (16, 16)
    assert np.array_equal(np.asarray(pictures[0]), np.asarray(again[0]))
    assert steps == [0, 1, 2, 3]


def test_wrong_options_and_missing_bundles(tmp_path: Path) -> None:
    with pytest.raises(dexport.UserError, match="expected one of the options steps, got 'stepz'"):
        dexport.build("model", target="cpu", stepz=3)
    with pytest.raises(dexport.UserError, match="expected a bundle, got nothing there"):
        dexport.load(tmp_path / "none.dxb")
