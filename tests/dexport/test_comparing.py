"""`dexport compare` from two paths to a report."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch

from dexport.comparing import CompareRequest, compare_command
from dexport.errors import UserError
from dexport.exporter.quality import quality_from_json
from dexport.runtime.bundle import open_bundle


@pytest.fixture(scope="module")
def changed(pixart: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline with every weight of its decoder a few percent larger."""
    copy = tmp_path_factory.mktemp("changed") / "pipeline"
    shutil.copytree(pixart, copy)
    file = copy / "vae/diffusion_pytorch_model.safetensors"
    tensors = {name: 1.02 * tensor for name, tensor in safetensors.torch.load_file(file).items()}
    safetensors.torch.save_file(tensors, file)
    return copy


@pytest.fixture
def request_of(pixart_cpu: Path, changed: Path, tmp_path: Path) -> CompareRequest:
    """The changed pipeline against a copy of the bundle that may be written to."""
    (tmp_path / "prompts.txt").write_text("a red circle\na blue square\n")
    (tmp_path / "marks.py").write_text("def score(prompt, picture):\n    return len(prompt) + float(picture.mean()) / 255\n")
    return CompareRequest(
        reference=str(changed),
        candidate=str(shutil.copy(pixart_cpu, tmp_path / "cpu.dxb")),
        output=tmp_path / "report.html",
        prompts=tmp_path / "prompts.txt",
        steps=4,
    )


def test_a_comparison_from_end_to_end(request_of: CompareRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    json_output = tmp_path / "report.json"
    compare_command(dataclasses.replace(request_of, json_output=json_output, write=True, seeds=2, scorer=f"{tmp_path / 'marks.py'}:score"))
    document = json.loads(json_output.read_text())
    quality = quality_from_json(document["quality"], "x")
    assert quality.pictures == 4 and 10 < quality.psnr.median < 60, "the decoder is another one"
    assert len(quality.latent_cosine) == 4 and quality.latent_cosine[-1] > 0.999999, "the denoiser is the same"
    assert quality.score is not None and quality.score.reference > 12 and quality.score.change != 0
    assert [pair["seed"] for pair in document["pairs"]] == [0, 1, 2, 3]
    assert document["command"].startswith("dexport compare ") and "--seeds 2" in document["command"]
    printed = capsys.readouterr().out
    assert f"PSNR    {quality.psnr.median:.2f} dB median" in printed and "95 % interval" in printed
    bundle = open_bundle(request_of.candidate)
    assert bundle.manifest.quality == document["quality"]
    assert bundle.read_bytes("report/index.html").decode() == request_of.output.read_text(encoding="utf-8")
    page = request_of.output.read_text(encoding="utf-8")
    assert page.count("data:image/png") == 12 and "a blue square" in page


def test_wrong_requests_are_refused_before_the_work(request_of: CompareRequest, tmp_path: Path) -> None:
    for change, message in (
        ({"output": tmp_path}, "-o .*: expected a file in a folder that exists, got a folder"),
        ({"json_output": tmp_path / "none/report.json"}, "--json .*: expected a file in a folder that exists, got a file in .*none"),
        ({"candidate": request_of.reference, "write": True}, "--write: expected a bundle as the second side"),
        ({"prompts": tmp_path / "none.txt"}, "none.txt: expected a text file"),
        ({"steps": 5}, "--steps: expected one of 20, 4, which both sides have, got 5"),
        ({"scorer": "marks.py"}, "--scorer: expected FILE.py:FUNCTION"),
    ):
        with pytest.raises(UserError, match=message):
            compare_command(dataclasses.replace(request_of, **change))  # type: ignore[arg-type]
    assert not request_of.output.exists()
