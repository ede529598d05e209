"""The tiny pipeline opened and calibrated, which several tests of quantization share."""

from __future__ import annotations

from pathlib import Path

import pytest

from dexport.exporter.calibration import calibrate
from dexport.exporter.calibration_request import CalibrationRequest
from dexport.exporter.options import BuildOptions
from dexport.exporter.torch_pipeline import TorchPipeline, open_torch_pipeline
from dexport.passes.quantization.statistics import Statistics

CALIBRATION_PROMPTS = ("a red circle", "a large blue square", "the green triangle")


@pytest.fixture(scope="session")
def opened(pixart: Path) -> TorchPipeline:
    """Four steps at guidance 3; read it, never change it."""
    return open_torch_pipeline(BuildOptions(model=str(pixart), target="cpu", precision="fp32", steps=(4,), guidance=3.0))


@pytest.fixture(scope="session")
def calibrated(opened: TorchPipeline) -> Statistics:
    """Of three prompts."""
    return calibrate(opened, CalibrationRequest(conditions=CALIBRATION_PROMPTS, seed=5, samples=12), None)
