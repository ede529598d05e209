"""`dexport estimate`: models and bundles, words and JSON, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dexport.cli import main
from tests.runtime.sample_bundle import write_sample


def _ok(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    code = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out


def _refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(a) for a in arguments]) == 2
    return capsys.readouterr().err


def test_a_model_with_a_recipe(pixart: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--target", "rtx-5090", "--recipe", "vidit-q-w8a8", "--size", "16x24", "--steps", 3, "--json"]
    document = json.loads(_ok(capsys, "estimate", pixart, *flags))
    assert (document["subject"], document["recipe"], document["size"]) == (str(pixart), "vidit-q-w8a8", "16x24")
    denoiser = next(part for part in document["components"] if part["name"] == "denoiser")
    assert denoiser["calls"] == 3 and "int8" in denoiser["weights"]
    assert document["fits"] == "together" and document["step_ms"] > 0


def test_a_bundle_on_its_own_target_and_on_another(pixart_cpu: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = _ok(capsys, "estimate", pixart_cpu, "--steps", 4, "--size", "16x24").splitlines()
    assert lines[0] == "estimate   cpu, 16x24, 4 steps, 2 pictures in one run"
    assert lines[-1] == "time       not estimated: its speed depends on the machine at hand"
    lines = _ok(capsys, "estimate", pixart_cpu, "--target", "jetson-orin").splitlines()
    assert " ms a step, " in lines[-1] and "jetson-orin" in lines[0]
    inspected = _ok(capsys, "inspect", pixart_cpu)
    assert "estimate   cpu, 16x16, 20 steps, 2 pictures in one run" in inspected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["MODEL"], "--target: expected a device, such as rtx-4090, got nothing"),
        (["MODEL", "--target", "rtx-4099"], "did you mean"),
        (["MODEL", "--target", "rtx-4090", "--recipe", "w3a3"], "w3a3"),
        (["MODEL", "--target", "rtx-4090", "--size", "large"], "expected HEIGHTxWIDTH in pixels"),
        (["MODEL", "--target", "rtx-4090", "--size", "17x16"], "multiples of"),
        (["BUNDLE", "--steps", "7"], "expected one of 16x16 in 20 steps, 16x16 in 4 steps, 16x24 in 20 steps, 16x24 in 4 steps"),
        (["BUNDLE", "--recipe", "int8"], "--recipe: expected a model, "),
        (["BUNDLE", "--target", "toaster"], "target 'toaster': expected a known device"),
        (["no/such/model/here", "--target", "cpu"], "expected a diffusers pipeline directory"),
        (["EMPTY", "--target", "cpu"], "model_index.json"),
        (["OLD"], "expected workload.json, which builds write, got none"),
    ],
)
def test_wrong_requests(
    arguments: list[str], message: str, pixart: Path, pixart_cpu: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    known = {"MODEL": pixart, "BUNDLE": pixart_cpu, "EMPTY": tmp_path / "empty"}
    if arguments[0] == "OLD":
        known["OLD"] = write_sample(tmp_path / "old.dxb")
    assert message in _refused(capsys, "estimate", known.get(arguments[0], arguments[0]), *arguments[1:])
