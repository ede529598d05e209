"""What `cmake --install` writes serves an application, through CMake and through pkg-config, wherever it is moved to."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dexport.runtime.pipeline import load
from tests.runtime.cpp.conftest import SOURCES

_EXAMPLE = SOURCES.parents[1] / "examples" / "cpp"
_PROMPT = "a small red circle"


@pytest.fixture(scope="module")
def prefix(cpp_build: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installed tree that is no longer where it was installed."""
    folder = tmp_path_factory.mktemp("installed")
    _run("cmake", "--install", cpp_build, "--prefix", folder / "first")
    (folder / "first").rename(folder / "moved")
    return folder / "moved"


@pytest.fixture
def example(tmp_path: Path) -> Path:
    return Path(shutil.copytree(_EXAMPLE, tmp_path / "example"))


def _run(*command: object) -> str:
    texts = [str(part) for part in command]
    done = subprocess.run(texts, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(texts)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def _check(program: Path, bundle: Path, folder: Path) -> None:
    """The application makes the picture that Python makes."""
    picture = folder / "out.png"
    assert _run(program, bundle, _PROMPT, picture, 7) == f"{picture}\n"
    with load(bundle) as pipe:
        wanted = pipe(_PROMPT, seed=7, output_type="np").images
    assert np.array_equal(np.asarray(Image.open(picture)), np.asarray(wanted)[0])


def test_find_package(prefix: Path, example: Path, pixart_cpu: Path, tmp_path: Path) -> None:
    _run("cmake", "-S", example, "-B", example / "build", f"-DCMAKE_PREFIX_PATH={prefix}", "-DCMAKE_BUILD_TYPE=Release")
    _run("cmake", "--build", example / "build")
    _check(example / "build" / "example", pixart_cpu, tmp_path)


def test_pkg_config(prefix: Path, example: Path, pixart_cpu: Path, tmp_path: Path) -> None:
    _run("make", "-C", example, f"PKG_CONFIG_PATH={prefix / 'lib' / 'pkgconfig'}")
    _check(example / "example", pixart_cpu, tmp_path)


def test_the_player_is_installed(prefix: Path) -> None:
    assert _run(prefix / "bin" / "dexport-run", "--version").startswith("dexport-run ")


def test_only_public_headers_are_installed_and_the_c_one_is_c(prefix: Path) -> None:
    headers = sorted(path.name for path in (prefix / "include").rglob("*") if path.is_file())
    assert headers == ["dexport.h", "dexport.hpp"]
    _run("cc", "-std=c99", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-x", "c", prefix / "include" / "dexport" / "dexport.h")


def test_another_version_is_refused(prefix: Path, example: Path) -> None:
    file = example / "CMakeLists.txt"
    file.write_text(file.read_text(encoding="utf-8").replace("dexport 0.1", "dexport 0.2"), encoding="utf-8")
    command = ["cmake", "-S", example, "-B", example / "build", f"-DCMAKE_PREFIX_PATH={prefix}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and 'compatible with requested version "0.2"' in " ".join(done.stderr.split())


def test_the_library_shows_nothing_but_its_interface(prefix: Path) -> None:
    listed = _run("nm", "--dynamic", "--defined-only", "--format=posix", prefix / "lib" / "libdexport.so")
    names = {line.split()[0] for line in listed.splitlines()}
    ours = {name for name in names if "dexport" in name}
    assert "dexport_run" in ours and all(name.startswith("dexport_") for name in ours), sorted(ours)
