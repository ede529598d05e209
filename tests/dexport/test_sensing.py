"""`dexport sensitivity` from the command's point of view: what it writes, says and refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dexport.errors import UserError
from dexport.exporter import recipe_sensitivity
from dexport.exporter.calibration import calibrate
from dexport.exporter.calibration_request import CalibrationRequest
from dexport.exporter.options import BuildOptions
from dexport.exporter.sensitivity_table import load_table
from dexport.exporter.torch_pipeline import TorchPipeline, open_torch_pipeline
from dexport.sensing import SensitivityRequest, sensitivity_command, table_lines


@pytest.fixture(scope="module")
def opened(pixart: Path) -> TorchPipeline:
    """A pipeline at the size, steps and scheduler that the statistics have."""
    return open_torch_pipeline(
        BuildOptions(
            model=str(pixart), target="cpu", precision="fp32", sizes=((16, 16),), steps=(2,), scheduler="DDIMScheduler", guidance=3.0
        )
    )


@pytest.fixture(scope="module")
def statistics(opened: TorchPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("statistics") / "s.safetensors"
    calibrate(opened, CalibrationRequest(conditions=("a red circle", "a blue square"), seed=3, samples=4), path)
    return path


@pytest.fixture
def asking(opened: TorchPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the command have the pipeline that is open already, as capturing takes long, if it asks for just that one."""

    def given(options: BuildOptions) -> TorchPipeline:
        assert options == opened.plan.options
        return opened

    monkeypatch.setattr(recipe_sensitivity, "open_torch_pipeline", given)


def _request(model: Path, statistics: Path, output: Path, **more: Any) -> SensitivityRequest:
    return SensitivityRequest(**{"model": str(model), "statistics": statistics, "output": output, "recipe": "int8", **more})


@pytest.mark.usefixtures("asking")
def test_it_writes_a_file_and_a_picture_and_prints_the_worst(
    pixart: Path, statistics: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "sensitivity.json"
    sensitivity_command(_request(pixart, statistics, output, ranges=2))
    table = load_table(output)
    assert (table.metric, table.ranges, table.choices()) == ("output", ((0, 0), (1, 1)), ("int8",))
    assert (tmp_path / "sensitivity.svg").read_text(encoding="utf-8").startswith("<svg")
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["layer", "int8", "int8"]
    assert printed[2].split() == ["steps", "1-1", "steps", "2-2"]
    worst = max(table.harms, key=lambda unit: table.harm(unit, "int8", "layer"))
    assert printed[3].split()[0] == worst
    assert printed[-1].startswith(f"wrote {output} and {tmp_path / 'sensitivity.svg'} in ")


@pytest.mark.usefixtures("asking")
def test_other_prompts_and_a_metric_that_runs(pixart: Path, statistics: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = tmp_path / "p.txt"
    prompts.write_text("a square\na circle\na triangle\n", encoding="utf-8")
    output = tmp_path / "s.json"
    sensitivity_command(_request(pixart, statistics, output, metric="model", ranges=1, prompts=prompts, pictures=2))
    table = load_table(output)
    assert table.identity["prompts"] == ["a square", "a circle"] and table.identity["seeds"] == [3, 4]
    assert "prompt" in capsys.readouterr().out.splitlines()[1]
    with pytest.raises(UserError, match="sensitivities with prompts"):
        sensitivity_command(_request(pixart, statistics, output, metric="model", ranges=1, pictures=2))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"metric": "fid"}, "--metric"),
        ({"prompts": Path("p.txt")}, "--prompts"),
        ({"metric": "model", "scorer": "a.py:b"}, "--scorer"),
        ({"output": Path("s.svg")}, "ends in .json"),
        ({"output": Path("nowhere/s.json")}, "a folder that exists"),
        ({"recipe": "int9"}, "recipe int9"),
        ({"statistics": Path("none.safetensors")}, "dexport calibrate"),
    ],
)
def test_what_is_refused(pixart: Path, statistics: Path, tmp_path: Path, wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        sensitivity_command(_request(pixart, **{"statistics": statistics, "output": tmp_path / "s.json", **wrong}))


@pytest.mark.usefixtures("asking")
def test_few_lines_name_how_many_are_left(pixart: Path, statistics: Path, tmp_path: Path) -> None:
    output = tmp_path / "s.json"
    sensitivity_command(_request(pixart, statistics, output, metric="sqnr", ranges=1))
    table = load_table(output)
    lines = table_lines(table, most=2)
    assert lines[-2] == f"and {len(table.harms) - 2} more layers, in the file"
    assert len(lines) == 3 + 2 + 2
