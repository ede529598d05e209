"""`dexport calibrate` from the command's point of view: what it writes, says and refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dexport.calibrating import CalibrateRequest, calibrate_command
from dexport.errors import UserError
from dexport.exporter import torch_pipeline
from dexport.exporter.options import BuildOptions
from dexport.exporter.torch_pipeline import TorchPipeline, open_torch_pipeline
from dexport.passes.quantization.statistics import load_statistics


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("a red circle\n\na blue square\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def opened(pixart: Path) -> TorchPipeline:
    """A pipeline at the size, steps and scheduler that all tests ask for."""
    return open_torch_pipeline(
        BuildOptions(model=str(pixart), target="cpu", precision="fp32", sizes=((16, 24),), steps=(2,), scheduler="DDIM", guidance=3.0)
    )


@pytest.fixture
def asking(opened: TorchPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets commands have the pipeline that is open already, as capturing takes long, if they ask for just that one."""

    def given(options: BuildOptions) -> TorchPipeline:
        assert options == opened.plan.options
        return opened

    monkeypatch.setattr(torch_pipeline, "open_torch_pipeline", given)


def _request(model: Path, prompts: Path, output: Path, **more: Any) -> CalibrateRequest:
    asked = {"steps": 2, "size": "16x24", "scheduler": "DDIM", "guidance": 3.0} | more
    return CalibrateRequest(model=str(model), prompts=prompts, output=output, **asked)


@pytest.mark.usefixtures("asking")
def test_it_writes_statistics_and_says_what_was_seen(
    pixart: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "statistics.safetensors"
    calibrate_command(_request(pixart, prompts, output, sampler="ndtc", calibration_size=3, seed=1))
    found = load_statistics(output)
    assert (found.size, found.guidance, found.sampler) == ((16, 24), 3.0, "ndtc")
    assert found.schedule.scheduler == "DDIMScheduler"
    assert found.samples.prompts == ("a red circle", "a blue square", "a red circle")
    assert found.samples.seeds == (1, 2, 3)
    layers = sum(len(component) for component in found.components.values())
    said = capsys.readouterr()
    assert f"wrote {output}: {layers} layers, 2 steps, 3 pictures, 6 samples; statistics took " in said.out
    assert "statistics take" in said.err and "pictures 1 to 3 of 3" in said.err


@pytest.mark.usefixtures("asking")
def test_an_interrupt_says_where_to_go_on(
    pixart: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dexport.exporter import calibration

    request = _request(pixart, prompts, tmp_path / "out", calibration_size=9)
    batch = calibration.Calibration.batch

    def second_is_interrupted(self: calibration.Calibration, report: calibration.Report) -> None:
        if self.pictures:
            raise KeyboardInterrupt
        batch(self, report)

    monkeypatch.setattr(calibration.Calibration, "batch", second_is_interrupted)
    with pytest.raises(KeyboardInterrupt):
        calibrate_command(request)
    monkeypatch.setattr(calibration.Calibration, "batch", batch)
    assert f"what was seen so far is in {tmp_path / 'out.resume'}; the same command goes on from there" in capsys.readouterr().err
    calibrate_command(request)
    assert "go on after 8 pictures" in capsys.readouterr().err
    assert len(load_statistics(tmp_path / "out").samples.seeds) == 9


def test_prompts_are_needed_unless_the_sampler_brings_its_own(prompts: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give --prompts FILE, or --sampler zero-data"):
        calibrate_command(CalibrateRequest(model="model", prompts=None, output=tmp_path / "out"))
    with pytest.raises(UserError, match="expected none with --sampler zero-data"):
        calibrate_command(CalibrateRequest(model="model", prompts=prompts, output=tmp_path / "out", sampler="zero-data"))


def test_mistakes_are_refused_before_any_work(prompts: Path, tmp_path: Path) -> None:
    def refused(**changed: object) -> str:
        request = CalibrateRequest(**({"model": "no/such/model/at/all", "prompts": prompts, "output": tmp_path / "out"} | changed))  # type: ignore[arg-type]
        with pytest.raises(UserError) as caught:
            calibrate_command(request)
        return str(caught.value)

    assert "HEIGHTxWIDTH" in refused(size="big")
    assert "a folder" in refused(output=tmp_path)
    assert "does not exist" in refused(output=tmp_path / "none" / "out")
    assert "sampler: expected uniform, ndtc, tdac, zero-data" in refused(sampler="normal")
    assert "diffusers pipeline directory" in refused()
