"""What users get wrong is one line on stderr that names it, exit status 2, and nothing at the output."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dexport.cli import main
from dexport.runtime.bundle_writer import BundleWriter
from tests.pipelines import edit_config

TEXT = Path("text_encoder") / "model.safetensors"


def _build(directory: Path | str, out: Path, *arguments: str) -> int:
    return main(["build", str(directory), "--target", "cpu", "-o", str(out), *arguments])


def _one_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def _pickle(file: Path) -> None:
    file.rename(file.with_name("pytorch_model.bin"))


def _shard(file: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    file.rename(file.with_name("model-00001-of-00002.safetensors"))
    file.with_name("model.safetensors.index.json").write_text(json.dumps(index))


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no index": (
        lambda d: (d / "model_index.json").unlink(),
        "got a directory without model_index.json; give the directory that save_pret",
    ),
    "broken index": (lambda d: (d / "model_index.json").write_text("[]"), "expected JSON with the key _class_name, got something else"),
    "other class": (
        lambda d: edit_config(d / "model_index.json", _class_name="KandinskyPipeline"),
        "expected one of .*got KandinskyPipeline",
    ),
    "no component": (lambda d: shutil.rmtree(d / "transformer"), "expected a complete pipeline directory, got without .*transformer"),
    "broken component": (lambda d: (d / "transformer" / "config.json").write_text("{"), "expected configurations that can be read"),
    "no scheduler": (
        lambda d: shutil.rmtree(d / "scheduler"),
        "scheduler_config.json: expected JSON with the key _class_name, got no such",
    ),
    "no tokenizer": (lambda d: shutil.rmtree(d / "tokenizer"), "tokenizer: expected a tokenizer folder, got no such folder"),
    "truncated": (lambda d: _truncate(d / TEXT), "model.safetensors: expected at least [0-9]+ bytes, got [0-9]+; the file is truncated"),
    "only pickles": (lambda d: _pickle(d / TEXT), r"text_encoder: expected \*.safetensors weights, got only pytorch_model.bin"),
    "missing shard": (lambda d: _shard(d / TEXT), "model-00002-of-00002.safetensors: expected a shard that .* lists, got no such file"),
    "other shape": (
        lambda d: edit_config(d / "text_encoder" / "config.json", d_ff=40),
        r"wi.weight: expected shape \(40, 32\) \(config.json\), got \(37, 32\); check that weights and config.json belong together",
    ),
}


@pytest.mark.parametrize(("damage", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_a_damaged_pipeline_is_refused(
    pixart: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], object], message: str
) -> None:
    directory = shutil.copytree(pixart, tmp_path / "model")
    damage(directory)
    out = tmp_path / "out" / "b.dxb"
    assert _build(directory, out) == 2
    assert re.search(message, error := _one_line(capsys)), error
    assert str(directory) in error or "wi.weight" in error
    assert not out.exists() and not list(out.parent.glob("*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "jetson-origin"], "jetson-orin"),
        (["--scheduler", "EulerDiscret"], r"scheduler EulerDiscret: expected a scheduler class of diffusers, .*EulerDiscreteScheduler"),
        (["--size", "17x16"], "size 17x16: expected multiples of 4 pixels, got 17 and 16; use for example 16x16"),
        (["--size", "1x16"], "use for example 4x16"),
        (["--precision", "fp8"], "fp8"),
    ],
)
def test_an_impossible_request_is_refused(
    pixart: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert _build(pixart, tmp_path / "b.dxb", *arguments) == 2
    assert re.search(message, error := _one_line(capsys)), error
    assert not list(tmp_path.glob("*"))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("no/such/directory", "no/such/directory: expected a diffusers pipeline directory, got no such directory; give the directory that"),
        ("nosuchdirectory", "got no such directory"),
        (__file__, "got no such directory"),
    ],
)
def test_what_is_no_directory_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, message: str) -> None:
    assert _build(model, tmp_path / "b.dxb") == 2
    assert message in _one_line(capsys)


def test_a_weight_that_is_not_finite_is_a_failure_that_names_it(pixart: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = shutil.copytree(pixart, tmp_path / "model")
    tensors = load_file(directory / TEXT)
    name = "encoder.block.0.layer.0.SelfAttention.k.weight"
    save_file({**tensors, name: tensors[name].masked_fill(torch.eye(32, dtype=torch.bool), float("nan"))}, directory / TEXT)
    assert _build(directory, tmp_path / "b.dxb") == 1
    assert re.search(rf"{name}.*: expected finite weights, got 32 NaN or Inf values; repair or re-download", error := _one_line(capsys)), (
        error
    )
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_killed_build_leaves_nothing_visible_and_the_next_one_cleans_up(pixart: Path, tmp_path: Path) -> None:
    out = tmp_path / "b.dxb"
    process = subprocess.Popen(
        [sys.executable, "-m", "dexport", "build", str(pixart), "--target", "cpu", "-o", str(out)], stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and not list(tmp_path.glob(".*/files/graphs/*")):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    _, error = process.communicate()
    assert process.returncode == -signal.SIGKILL, error
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == []
    assert len(list(tmp_path.iterdir())) == 1
    with BundleWriter(out):
        pass
    assert not list(tmp_path.iterdir())
