"""Whether statistics fit what they are used for: the model, the size, and the steps of a schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from dexport.errors import UserError
from dexport.passes.quantization.statistics import Schedule, Statistics

FARTHEST = 0.1
"""Largest distance of two steps that count as one, as an angle: arctan(sigma), which runs over the noise evenly from none (0) to all
(pi / 2). Twenty steps of DDIM are at most 0.17 apart, so that every step of a longer schedule is near one of them; ten are 0.32 apart."""

_SAME_TIME = 0.15
"""Largest distance of two noise levels at one timestep, as an angle, where the schedules are of one kind."""


def check_statistics(statistics: Statistics, where: str, *, model: str, size: tuple[int, int]) -> None:
    """Refuses statistics of another model or size.

    Args:
        where: the file, for the error.
        model: sha256 of the pipeline directory (`exporter/source.py`).
        size: height and width in pixels.

    Raises:
        UserError: they differ; says in what.
    """
    if statistics.model != model:
        got = f"those of model {statistics.model[:12]}"
        raise UserError(where, expected=f"statistics of model {model[:12]}", got=got, fix="calibrate this model")
    if statistics.size != size:
        wanted, got = (f"{height}x{width}" for height, width in (size, statistics.size))
        raise UserError(where, expected=f"statistics at {wanted} pixels", got=got, fix=f"calibrate with --size {wanted}")


def match_schedule(calibrated: Schedule, timesteps: Sequence[float], sigmas: Sequence[float], where: str = "statistics") -> list[int]:
    """For every step of a schedule the calibrated step with the nearest noise level.

    Methods with one range for all steps do not need this; tables and ranges of steps do.

    Args:
        timesteps, sigmas: of the schedule, one per call of the denoiser, noise levels as the calibrated ones (`exporter/sigmas.py`).
        where: the file, for the error.

    Returns:
        One index into the calibrated steps each.

    Raises:
        UserError: a step has no calibrated one near, or the same timestep has another noise level: the model sees other inputs.
    """
    known = [math.atan(sigma) for sigma in calibrated.sigmas]
    found = []
    for step, (timestep, sigma) in enumerate(zip(timesteps, sigmas, strict=True)):
        angle = math.atan(sigma)
        nearest = min(range(len(known)), key=lambda i: abs(known[i] - angle))
        there = f"step {step} (timestep {timestep:g}, sigma {sigma:.3g})"
        usual = _interpolated(timestep, calibrated.timesteps, known)
        if usual is not None and abs(usual - angle) > max(_SAME_TIME, _spacing(known, nearest)):
            expected = f"noise levels of {calibrated.scheduler}, sigma {math.tan(usual):.3g} at timestep {timestep:g}"
            raise UserError(where, expected=expected, got=f"another schedule: {there}", fix="calibrate with this scheduler")
        if abs(known[nearest] - angle) > FARTHEST:
            expected = f"a calibrated step near {there}"
            got = f"timestep {calibrated.timesteps[nearest]:g} with sigma {calibrated.sigmas[nearest]:.3g} as the nearest of {len(known)}"
            raise UserError(where, expected=expected, got=got, fix="calibrate with the scheduler and the steps of the build")
        found.append(nearest)
    return found


def _interpolated(timestep: float, timesteps: Sequence[float], values: Sequence[float]) -> float | None:
    """Linear between the two calibrated timesteps around; None beyond them."""
    pairs = sorted(zip(timesteps, values))
    for (low, first), (high, second) in pairwise(pairs):
        if low <= timestep <= high and high > low:
            return first + (second - first) * (timestep - low) / (high - low)
    return None


def _spacing(values: Sequence[float], index: int) -> float:
    """Distance to the farther neighbour in the schedule."""
    near = [abs(values[i] - values[index]) for i in (index - 1, index + 1) if 0 <= i < len(values)]
    return max(near, default=0.0)
