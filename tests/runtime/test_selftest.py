"""What the self test calls an error; whole bundles are in tests/exporter/test_build.py."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dexport.runtime.selftest import Check, relative_error


def test_errors_are_relative_to_the_expected_norm() -> None:
    expected = np.array([[3.0, 4.0]], np.float32)
    assert relative_error(expected, expected) == 0
    assert relative_error(expected * 1.01, expected) == pytest.approx(0.01, rel=1e-5)
    assert relative_error(np.array([250], np.uint8), np.array([255], np.uint8)) == pytest.approx(5 / 255)
    assert relative_error(np.ones(2), np.zeros(2)) > 1e6
    assert relative_error(np.ones(2), np.ones(3)) == math.inf


@pytest.mark.parametrize(("error", "passed"), [(0.0, True), (1e-3, True), (1.1e-3, False), (math.nan, False), (math.inf, False)])
def test_nan_never_passes(error: float, passed: bool) -> None:
    assert Check("denoiser", error, 1e-3).passed is passed
