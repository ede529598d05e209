"""What `pip install dexport` gives: runtime and command line, without PyTorch."""

from __future__ import annotations

import json
import os
import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.dexport.bare import ROOT, bare_environment, build_wheel
from tests.runtime.finalize.small_kit import small_kit

_IMPORT_ALL = """
import importlib, pkgutil, sys
import dexport, dexport.runtime, dexport.targets
for package in (dexport.runtime, dexport.targets):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
heavy = {"torch", "diffusers", "transformers", "onnx", "onnxruntime", "openvino"} & set(sys.modules)
assert not heavy, heavy
assert importlib.util.find_spec("torch") is None
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bare_environment(tmp_path_factory.mktemp("bare"), wheel, extras=["openvino"])


def _run(python: Path, *arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    result = subprocess.run([str(python), *map(str, arguments)], capture_output=True, text=True, cwd=python.parent, env=environment)
    assert result.returncode == code, result.stderr
    return result


def test_the_wheel_holds_every_room_and_its_data(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for room in ("exporter", "passes", "plugins", "runtime", "targets"):
        patterns = ("*.py", "*.json", "*.yaml", "*.cu", "*.h")
        found = [path for pattern in patterns for path in (ROOT / room).rglob(pattern)]
        sources = [path for path in found if "cpp" not in path.parts]  # the C++ runtime is no part of the wheel
        assert sources
        missing = {f"dexport/{path.relative_to(ROOT)}" for path in sources} - names
        assert not missing
    assert "dexport/py.typed" in names
    assert not {name for name in names if not name.startswith("dexport")}


def test_every_module_of_the_runtime_imports_without_torch(python: Path) -> None:
    _run(python, "-c", _IMPORT_ALL)


def test_the_command_line_works_without_torch(python: Path) -> None:
    assert "Usage: dexport" in _run(python, "-m", "dexport", "--help").stdout
    assert "jetson-orin" in _run(python, "-m", "dexport", "targets").stdout
    findings = json.loads(_run(python, "-m", "dexport", "doctor", "--json").stdout)
    assert not any(ability["able"] for ability in findings["build"])
    assert [ability["able"] for ability in findings["run"] if ability["name"] == "cpu bundles"] == [True]
    error = _run(python, "-m", "dexport", "build", "model", "--target", "cpu", code=2).stderr.splitlines()[-1]
    assert error.startswith("error: ") and error.endswith("it is not installed; run: pip install 'dexport[export]'")


def test_a_bundle_runs_without_torch(python: Path, pixart_cpu: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    result = _run(python, "-m", "dexport", "run", pixart_cpu, "--prompt", "a red circle", "--seed", 1, "-o", out)
    assert result.stdout.startswith(f"wrote {out}")
    assert out.stat().st_size > 0
    assert "FAILED" not in _run(python, "-m", "dexport", "selftest", pixart_cpu).stdout


def test_a_kit_is_finished_without_torch_or_onnx(python: Path, tmp_path: Path) -> None:
    result = _run(python, "-m", "dexport", "finalize", small_kit(tmp_path / "kit.dxb"))
    assert "2 engines built" in result.stdout and "golden test passed: 2 runs" in result.stdout
