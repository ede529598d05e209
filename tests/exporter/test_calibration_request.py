"""Conditions: prompts or class labels, tiled or cut, with every picture another seed."""

from __future__ import annotations

from pathlib import Path

import pytest

from dexport.errors import UserError
from dexport.exporter.calibration import calibrate
from dexport.exporter.calibration_request import CalibrationRequest, calibration_conditions
from dexport.exporter.options import BuildOptions
from dexport.exporter.plan import Plan, plan
from dexport.exporter.torch_pipeline import open_torch_pipeline
from dexport.passes.quantization.samplers import GENERIC_PROMPTS, Sampler
from tests.pipelines import tiny_dit


@pytest.fixture(scope="module")
def dit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_dit(tmp_path_factory.mktemp("dit"))


@pytest.fixture(scope="module")
def classes(dit: Path) -> Plan:
    return plan(BuildOptions(model=str(dit), target="cpu"))


@pytest.fixture(scope="module")
def texts(pixart: Path) -> Plan:
    return plan(BuildOptions(model=str(pixart), target="cpu"))


def test_prompts_are_repeated_or_cut(texts: Plan) -> None:
    assert calibration_conditions(texts, ["a", "b", "c"], None) == ("a", "b", "c")
    assert calibration_conditions(texts, ["a", "b", "c"], 5) == ("a", "b", "c", "a", "b")
    assert calibration_conditions(texts, ["a", "b", "c"], 2) == ("a", "b")
    assert calibration_conditions(texts, None, None) == GENERIC_PROMPTS


def test_class_labels_are_numbers_or_spread(classes: Plan) -> None:
    most = next(int(r.negative) for r in classes.pipeline.requests)
    assert calibration_conditions(classes, ["1", "0"], 3) == (1, 0, 1)
    spread = calibration_conditions(classes, None, 4)
    assert spread == tuple(i * most // 4 for i in range(4))
    assert len(calibration_conditions(classes, None, None)) == min(most, 32)


def test_what_is_no_class_label_is_refused(classes: Plan) -> None:
    most = next(int(r.negative) for r in classes.pipeline.requests)
    for text in ("a red circle", str(most), "-1"):
        with pytest.raises(UserError, match=f"class labels from 0 to {most - 1}, as this model takes no text, got '{text}'"):
            calibration_conditions(classes, [text], None)


def test_no_pictures_are_refused(texts: Plan) -> None:
    with pytest.raises(UserError, match="at least one picture"):
        calibration_conditions(texts, [], None)


def test_a_class_conditional_pipeline_is_calibrated_with_labels(dit: Path) -> None:
    pipeline = open_torch_pipeline(BuildOptions(model=str(dit), target="cpu", steps=(2,)))
    conditions = calibration_conditions(pipeline.plan, None, 3)
    found = calibrate(pipeline, CalibrationRequest(conditions=conditions, sampler=Sampler("zero-data"), samples=4), None)
    assert found.samples.prompts == tuple(str(label) for label in conditions)
    assert len(found.samples.latents) == 4
    assert len({name.split(".")[1] for name in found.components["denoiser"] if name.startswith("transformer_blocks.")}) > 1
    assert all(int(seen.count.min()) > 0 for layers in found.components.values() for seen in layers.values())
