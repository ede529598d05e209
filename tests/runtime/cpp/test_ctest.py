"""The C++ runtime's own tests: each file of it has one in runtime/cpp/tests."""

from __future__ import annotations

import subprocess
from pathlib import Path

from .conftest import SOURCES


def test_every_test_of_the_runtime_passes(cpp_build: Path) -> None:
    done = subprocess.run(["ctest", "--preset", "cpu"], cwd=SOURCES, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "100% tests passed" in done.stdout
