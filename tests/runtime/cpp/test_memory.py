"""Runs of the C++ runtime leave nothing behind: no more memory is in use after a hundred runs than after ten."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest


@pytest.mark.parametrize(("openings", "runs", "most"), [(1, 100, 4096), (20, 5, 32768)])
def test_memory_in_use_does_not_grow(cpp_build: Path, openings: int, runs: int, most: int) -> None:
    tool = cpp_build / "tests" / "repeat_runs"
    told = json.loads(subprocess.run([tool, str(openings), str(runs)], capture_output=True, text=True, check=True).stdout)
    early, late = told["allocated"]
    assert early > 100_000  # bytes of the opened bundle: something was measured
    assert late - early < most, told  # a leak of 46 bytes a run, or 1821 an opening, would be more
    early, late = told["resident"]
    assert late - early < 1 << 20, told
