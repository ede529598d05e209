"""A missing extra is one line that names it; the plan needs no work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dexport.building import build_bundle, plan_lines
from dexport.errors import UserError
from dexport.exporter.options import options_from


def test_without_torch_the_extra_is_named() -> None:
    code = "import sys\nsys.modules['torch'] = None\nfrom dexport.cli import main\nsys.exit(main(['build', 'model', '--target', 'cpu']))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 2
    message = "error: building: expected the package torch, got it is not installed; run: pip install 'dexport[export]'"
    assert result.stderr.splitlines()[-1] == message


def test_a_plan_says_what_would_be_built(pixart: Path) -> None:
    lines = dict(line.split(maxsplit=1) for line in plan_lines(options_from({"model": str(pixart), "target": "cpu", "steps": "3"}, "test")))
    assert lines["precision"] == "fp32"
    assert lines["target"].startswith("cpu")
    assert lines["sampling"].endswith("steps 3")


def test_impossible_requests_are_refused_before_any_work(pixart: Path, tmp_path: Path) -> None:
    fp8 = options_from({"model": str(pixart), "target": "jetson-xavier"}, "test")
    with pytest.raises(UserError, match=r"expected TensorRT 10\.3 or newer"):
        build_bundle(fp8, tmp_path / "out.dxb", lambda stage, fraction: None)
    assert not list(tmp_path.iterdir())
