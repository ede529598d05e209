"""The C++ runtime's own tests: each file of it has one in runtime/cpp/tests."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

from .conftest import SOURCES


def test_every_test_of_the_runtime_passes(cpp_build: Path) -> None:
    done = subprocess.run(["ctest", "--preset", "cpu"], cwd=SOURCES, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "100% tests passed" in done.stdout


def test_a_filter_that_matches_no_test_case_does_not_pass(cpp_build: Path) -> None:
    nothing = subprocess.run([cpp_build / "tests" / "dexport_tests", "--source-file=*none.cpp"], capture_output=True, text=True, check=True)
    listed = subprocess.run(["ctest", "--preset", "cpu", "--show-only=json-v1"], cwd=SOURCES, capture_output=True, text=True, check=True)
    for test in json.loads(listed.stdout)["tests"]:
        properties = {each["name"]: each["value"] for each in test["properties"]}
        assert any(re.search(pattern, nothing.stdout) for pattern in properties["FAIL_REGULAR_EXPRESSION"]), test["name"]
