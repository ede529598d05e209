"""Self test: repeats a bundle's golden runs with its engines on this machine and compares."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dexport.errors import UserError
from dexport.runtime.bundle import Bundle
from dexport.runtime.engines import Engine, open_engine
from dexport.runtime.interpreter import run_program
from dexport.runtime.manifest import Golden
from dexport.runtime.noise import TorchNoise
from dexport.runtime.pipeline import load_program

GOLDEN_SEED = 0


@dataclass(frozen=True)
class Check:
    """One comparison: relative L2 error against the golden outputs, the largest of all outputs."""

    name: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance (NaN is not)."""
        return self.error <= self.tolerance


def selftest(bundle: Bundle, look: Callable[[str, Engine], None] = lambda component, engine: None) -> list[Check]:
    """Runs every golden of the bundle: each component alone, then the whole.

    Args:
        look: called with each component and its engine when that has run alone.

    Raises:
        UserError: the bundle carries no golden inputs.
    """
    if not bundle.manifest.golden:
        fix = "rebuild with --golden auto on a machine whose memory holds the model"
        raise UserError(str(bundle.path), expected="golden inputs and outputs", got="none in the bundle", fix=fix)
    return [_check(bundle, golden, look) for golden in bundle.manifest.golden]


def _check(bundle: Bundle, golden: Golden, look: Callable[[str, Engine], None]) -> Check:
    inputs, expected = bundle.tensors(golden.inputs), bundle.tensors(golden.outputs)
    given = _whole(bundle, inputs) if golden.component == "pipeline" else _component(bundle, golden.component, inputs, look)
    errors = [relative_error(given[name], expected[name]) for name in expected]
    return Check(golden.component, float(np.max(errors)), golden.tolerance)  # of numpy, as Python's max may pass over a NaN


def _component(
    bundle: Bundle, name: str, inputs: dict[str, npt.NDArray[Any]], look: Callable[[str, Engine], None]
) -> dict[str, npt.NDArray[Any]]:
    engine = open_engine(bundle, name, bundle.manifest.sizes[0])
    try:
        outputs = dict(engine(inputs))
        look(name, engine)
        return outputs
    finally:
        engine.close()


def _whole(bundle: Bundle, request: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    entry = bundle.manifest.programs[0]
    engines = {name: open_engine(bundle, name, entry.size) for name in bundle.manifest.components}
    try:
        tables = bundle.tensors(entry.tables) if entry.tables else {}
        return run_program(load_program(bundle, entry), engines, request, parameters={}, noise=TorchNoise(GOLDEN_SEED), tables=tables)
    finally:
        for engine in engines.values():
            engine.close()


def relative_error(given: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    """||given - expected|| / ||expected||, in float64; infinite if the shapes differ."""
    if given.shape != expected.shape:
        return math.inf
    difference = np.linalg.norm(given.astype(np.float64).ravel() - expected.astype(np.float64).ravel())
    return float(difference / max(float(np.linalg.norm(expected.astype(np.float64).ravel())), 1e-12))
