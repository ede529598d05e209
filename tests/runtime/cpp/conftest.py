"""The C++ runtime, built once for all tests that look at it from Python."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[3] / "runtime" / "cpp"
_TOOLS = {"cmake": "cmake", "c++": "g++", "make": "make", "pkg-config": "pkg-config"}
_HEADERS = {
    "CLI/CLI.hpp": "libcli11-dev",
    "doctest/doctest.h": "doctest-dev",
    "nlohmann/json.hpp": "nlohmann-json3-dev",
    "oniguruma.h": "libonig-dev",
    "openssl/evp.h": "libssl-dev",
    "png.h": "libpng-dev",
    "utf8proc.h": "libutf8proc-dev",
}
"""Debian's package for each tool and each header."""


@pytest.fixture(scope="session")
def cpp_build() -> Path:
    """Where the preset `cpu` of runtime/cpp is built; up to date. Skips where a tool or a library to build it is missing."""
    if missing := _missing_packages():
        pytest.skip(f"the C++ runtime cannot be built here; run: apt-get install {' '.join(missing)}")
    build = SOURCES / "build" / "cpu"
    build.mkdir(parents=True, exist_ok=True)
    with (build / ".lock").open("w") as lock:  # several processes of pytest share the folder
        fcntl.flock(lock, fcntl.LOCK_EX)
        _run("cmake", "--preset", "cpu")
        _run("cmake", "--build", "--preset", "cpu", "--parallel")
    return build


def _missing_packages() -> list[str]:
    missing = [package for tool, package in _TOOLS.items() if shutil.which(tool) is None]
    if missing:
        return missing
    question = "\n".join(f"#if !__has_include(<{header}>)\nmissing {package}\n#endif" for header, package in _HEADERS.items())
    answer = subprocess.run(["c++", "-E", "-P", "-x", "c++", "-"], input=question, capture_output=True, text=True, check=True).stdout
    return [line.removeprefix("missing ") for line in answer.splitlines() if line.startswith("missing ")]


def _run(*command: str) -> None:
    environment = os.environ | {"VIRTUAL_ENV": sys.prefix}  # whose OpenVINO is to be used
    done = subprocess.run(command, cwd=SOURCES, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
