"""The doctor names what is missing and the command that mends it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from dexport.cli import main
from dexport.doctor import Ability, Diagnosis, _found, _numbers, _packages, _trtexec, _trust, _with_gpu, lines, requirements
from dexport.machine import Gpu, Machine
from dexport.runtime.finalize.plugins import find_headers

_NO_GPU = Gpu("", None, "no NVIDIA driver")
_MACHINE = Machine("Linux aarch64", "ARM", 8, (), 8_000_000_000, 1_000_000_000, _NO_GPU, "NVIDIA Jetson Orin Nano")


def test_requirements_of_extras_are_read_from_the_metadata() -> None:
    found = requirements(
        [
            "numpy>=1.26",
            'torch>=2.13; extra == "export"',
            "av>=14 ; extra == 'video'",
            'ruff; extra == "dev"',
            'onnx<2,>=1.19; python_version > "3" and extra == "export"',
        ]
    )
    assert found == {"export": {"torch": "2.13", "onnx": "1.19"}, "video": {"av": "14"}, "dev": {"ruff": "0"}}


def test_missing_and_old_packages() -> None:
    assert _packages("x", {"numpy": "1"}, "a") == Ability("x", True, "", "")
    assert _packages("x", {"numpy": "999.1"}, "a,b").detail.endswith("is older than 999.1")
    missing = _packages("x", {"no-such-package": "1", "numpy": "1"}, "a,b")
    assert missing == Ability("x", False, "no no-such-package", "pip install 'dexport[a,b]'")


def test_a_package_that_does_not_load_is_no_package() -> None:
    assert _packages("x", {"numpy": "1"}, "a", imports="no_such_module").detail == "no_such_module is installed but does not load"


def test_versions_compare_by_number() -> None:
    assert _numbers("2.13.0+cpu") == (2, 13, 0)
    assert _numbers("2.9") < _numbers("2.13")
    assert _numbers("unknown") == ()


def test_what_needs_a_gpu() -> None:
    able, unable = Ability("x", True, "", ""), Ability("x", False, "no p", "pip install p")
    assert _with_gpu(able, Gpu("RTX", 89, "")) == able
    assert _with_gpu(able, _NO_GPU) == Ability("x", False, "no NVIDIA driver", "use a machine with an NVIDIA GPU and its driver")
    assert _with_gpu(unable, _NO_GPU).fix == "use a machine with an NVIDIA GPU and its driver; there: pip install p"
    assert _with_gpu(able, Gpu("H200", 90, ""), frozenset({89})).detail == "TensorRT-RTX has no SM 9.0"


def test_a_trust_file_that_others_can_write_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert _trust().able
    file = tmp_path / "dexport" / "trusted-code"
    file.parent.mkdir()
    file.touch()
    file.chmod(0o666)
    assert (_trust().able, _trust().fix) == (False, f"check it, then: chmod 600 {file}")


def test_lines_say_yes_and_no() -> None:
    diagnosis = Diagnosis("0.1.0", "3.11.0", _MACHINE, {}, (Ability("cpu", True, "", ""),), (Ability("gpu", False, "none", "buy one"),), ())
    text = "\n".join(lines(diagnosis))
    for part in ("NVIDIA Jetson Orin Nano", "no fast int8 or bf16", "8 GB", "none: no NVIDIA driver", "yes  cpu", "no  gpu  none  buy one"):
        assert part in text
    with_gpu = dataclasses.replace(diagnosis, machine=dataclasses.replace(_MACHINE, gpu=Gpu("GeForce RTX 4090", 89, "")))
    assert "GeForce RTX 4090, SM 8.9" in "\n".join(lines(with_gpu))


def test_the_command_prints_text_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    assert "build for\n  yes  cpu" in capsys.readouterr().out
    assert main(["doctor", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["packages"]["torch"].startswith("2.")
    assert {ability["name"] for ability in document["run"]} >= {
        "cpu bundles",
        "write .mp4",
        "plugins of Jetson kits: nvcc",
        "plugins of Jetson kits: TensorRT's headers",
    }


def test_plugins_of_jetson_kits_need_a_compiler_and_headers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TENSORRT_INCLUDE_DIR", str(tmp_path))
    fix = "run: sudo apt-get install libnvinfer-headers-dev, or set TENSORRT_INCLUDE_DIR"
    assert _found("headers", find_headers) == Ability("headers", False, f"none in {tmp_path}", fix)
    (tmp_path / "NvInferRuntime.h").touch()
    assert _found("headers", find_headers) == Ability("headers", True, "", "")


def test_jetson_kits_need_trtexec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTEXEC", "/usr/src/tensorrt/bin/trtexec")
    assert _trtexec().able
    monkeypatch.delenv("TRTEXEC")
    monkeypatch.setenv("PATH", "")
    assert _trtexec().able == Path("/usr/src/tensorrt/bin/trtexec").exists()
