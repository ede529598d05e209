import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.exporter.engines.rtx_models import block, write

pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx (pip install 'dexport[rtx]')")


def answer(folder: Path, onnx: Path, **request: Any) -> dict[str, Any]:
    """Starts the worker as `build_engine` does and returns its answer."""
    request = {
        "onnx": str(onnx),
        "plan": str(folder / "plan"),
        "answer": str(folder / "answer"),
        "sm": [86],
        "profiles": [],
        "tf32": False,
    } | request
    done = subprocess.run(
        [sys.executable, "-m", "dexport.exporter.engines.tensorrt_rtx_worker"], input=json.dumps(request).encode(), check=False
    )
    assert done.returncode == 0
    result = json.loads((folder / "answer").read_text())
    assert isinstance(result, dict)
    return result


def test_a_plan_and_its_version(tmp_path: Path) -> None:
    assert answer(tmp_path, block(tmp_path / "b.onnx"))["version"].startswith("1.")
    assert (tmp_path / "plan").stat().st_size > 0


def test_a_refusal_is_an_answer(tmp_path: Path) -> None:
    model = write(tmp_path / "m.onnx", "g (float16[2,3] x) => (float16[2,3] y) { y = nobody.Knows(x) }")
    assert answer(tmp_path, model) == {"error": "parse", "node": "number 0", "op": "Knows", "got": "an operator it does not support"}
    assert not (tmp_path / "plan").exists()
