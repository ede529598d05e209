"""A scheduler as data: run once on one-hot tensors, accepted only if it really is linear, kept as a recurrence.

Accepted means: zeros give zeros, one-hot tensors of 1e-3, 1 and 1e3 give the same coefficients, and the recurrence repeats what the
scheduler does with random tensors of magnitude 1 and 100 to 1e-5. Otherwise the error names the first step that differs.
A step here is one model call; a scheduler of second order makes two of them per step that was asked for.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dexport.errors import UserError
from dexport.exporter.recurrence import Array, Recurrence, Step, Table, find_recurrence, replay
from dexport.exporter.scheduler_run import FIX, Schedule, Trajectory, ready_scheduler, run_scheduler
from dexport.exporter.step_component import SteppedSolver, trace_steps

MAX_STATE_BUFFERS = 12
_TOLERANCE = 1e-5
_SCALES = (1e-3, 1e3)
_MAGNITUDES = (1.0, 100.0)
_RANDOM_SEED = 1234
_RANDOM_SIZE = 64


@dataclass(frozen=True, eq=False)
class Solver:
    """A linear scheduler, decided.

    Attributes:
        scheduler: its class name.
        schedule: how it was set up.
        timesteps: one per model call.
        init_noise: what the first noise is multiplied by to become the first sample.
        init_clean: what a given clean sample is multiplied by and added, for runs that start later than step 0; else 0.
        recurrence: coefficients of every model call in float64; slot 0 is the sample.
        stepped: for schedulers that are not linear but keep no history: the components that make each step instead of the
            recurrence's updates, which are empty then.
    """

    scheduler: str
    schedule: Schedule
    timesteps: tuple[float, ...]
    init_noise: float
    init_clean: float
    recurrence: Recurrence
    stepped: SteppedSolver | None = None


class _NotLinearError(UserError):
    """What a step does is no sum; it may still be a component."""


def probe(scheduler: Any, schedule: Schedule) -> Solver:
    """Turns a scheduler into coefficients.

    Args:
        scheduler: any diffusers scheduler; not changed.
        schedule: steps, and what else the pipeline tells its scheduler.

    Raises:
        UserError: the scheduler does not run (see `run_scheduler`), is not linear, or remembers more than 12 buffers.
    """
    name = type(scheduler).__name__
    still = _run(scheduler, schedule, lambda _: torch.zeros(1, 1, _RANDOM_SIZE, 1, dtype=torch.float64))
    for index, sample in enumerate(still.samples[1:]):
        if not bool((sample == 0).all()):
            became = "become NaN" if bool(sample.isnan().any()) else "do not stay zero"
            raise _not_linear(name, still, index, f"zeros that {became}")
    init_noise, init_clean = initial_scales(scheduler, schedule)
    try:
        recurrence, stepped = _linear(scheduler, schedule, still), None
    except _NotLinearError as error:
        stepped = trace_steps(scheduler, schedule, still, error.got)
        steps = zip(stepped.input_scales, still.draws)
        recurrence = Recurrence(tuple(Step(np.array([scale]), (), draws) for scale, draws in steps), rank=1, slots=1)
    return Solver(name, schedule, still.timesteps, init_noise, init_clean, recurrence, stepped)


def _linear(scheduler: Any, schedule: Schedule, still: Trajectory) -> Recurrence:
    name = type(scheduler).__name__
    table = _one_hot_table(scheduler, schedule, still, 1.0)
    for scale in _SCALES:
        other = _one_hot_table(scheduler, schedule, still, scale)
        _compare(name, still, f"one-hot tensors of {scale:g}", (table.inputs, table.samples), (other.inputs, other.samples))
    recurrence = find_recurrence(table)
    for magnitude in _MAGNITUDES:
        _check_random(scheduler, schedule, still, recurrence, magnitude)
    if recurrence.rank > MAX_STATE_BUFFERS:
        expected = f"at most {MAX_STATE_BUFFERS} buffers of history"
        raise UserError(f"scheduler {name}", expected=expected, got=str(recurrence.rank), fix=FIX)
    return recurrence


def initial_scales(scheduler: Any, schedule: Schedule) -> tuple[float, float]:
    """Scales of noise and of a given clean sample in the first sample.

    From step 0 it is pure noise times `init_noise_sigma`; later ones mix both as `add_noise` (or `scale_noise` of flow models) does.

    Raises:
        UserError: a later start is asked for and the scheduler has neither method.
    """
    own, timesteps = ready_scheduler(scheduler, schedule)
    if not schedule.start:
        return float(getattr(own, "init_noise_sigma", 1.0)), 0.0
    zero, one = torch.zeros(1, 1, 1, 1, dtype=torch.float64), torch.ones(1, 1, 1, 1, dtype=torch.float64)
    mixes: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
        "add_noise": lambda clean, noise: own.add_noise(clean, noise, timesteps[:1]),
        "scale_noise": lambda clean, noise: own.scale_noise(clean, timesteps[:1], noise),
    }
    for method, mix in mixes.items():
        if hasattr(own, method):
            return float(mix(zero, one)), float(mix(one, zero))
    expected = "a method add_noise or scale_noise to start at a later step"
    raise UserError(f"scheduler {type(scheduler).__name__}", expected=expected, got="neither", fix="start at step 0")


def _run(scheduler: Any, schedule: Schedule, tensor: Callable[[int], torch.Tensor], calls: int = 0) -> Trajectory:
    """`tensor(column)` makes the first sample (0), the outputs (1 ..) and, `calls` outputs later, the noises."""
    return run_scheduler(scheduler, schedule, tensor(0), lambda index, _input: tensor(1 + index), lambda draw: tensor(1 + calls + draw))


def _one_hot_table(scheduler: Any, schedule: Schedule, still: Trajectory, scale: float) -> Table:
    calls = len(still.timesteps)
    columns = 1 + calls + sum(still.draws)

    def one_hot(column: int) -> torch.Tensor:
        tensor = torch.zeros(1, 1, columns, 1, dtype=torch.float64)
        tensor[0, 0, column, 0] = scale
        return tensor

    _check_draws(scheduler, still, trajectory := _run(scheduler, schedule, one_hot, calls))
    return Table(_rows(trajectory.inputs) / scale, _rows(trajectory.samples) / scale, still.draws)


def _check_draws(scheduler: Any, still: Trajectory, other: Trajectory) -> None:
    for index, (before, now) in enumerate(zip(still.draws, other.draws)):
        if before != now:
            raise _not_linear(type(scheduler).__name__, still, index, f"{before} or {now} draws of noise depending on the sample")


def _check_random(scheduler: Any, schedule: Schedule, still: Trajectory, recurrence: Recurrence, magnitude: float) -> None:
    calls = len(still.timesteps)
    columns = 1 + calls + sum(still.draws)
    values = magnitude * np.random.default_rng(_RANDOM_SEED).standard_normal((columns, _RANDOM_SIZE))
    trajectory = _run(scheduler, schedule, lambda column: torch.from_numpy(values[column].copy()).reshape(1, 1, -1, 1), calls)
    expected = replay(recurrence, values[0], values[1 : 1 + calls], values[1 + calls :])
    given = (_rows(trajectory.inputs), _rows(trajectory.samples))
    _compare(type(scheduler).__name__, still, f"random tensors of magnitude {magnitude:g}", expected, given)


def _compare(name: str, still: Trajectory, what: str, expected: tuple[Array, Array], given: tuple[Array, Array]) -> None:
    """Compares model inputs [T, n] and samples [T + 1, n]; blames the first step that differs."""
    for index in range(len(still.timesteps)):
        for ours, theirs in ((expected[0][index], given[0][index]), (expected[1][index + 1], given[1][index + 1])):
            size = max(float(np.linalg.norm(ours)), float(np.linalg.norm(theirs)))
            difference = float(np.linalg.norm(ours - theirs))
            if not difference <= _TOLERANCE * size:
                relative = difference / size if size else difference
                raise _not_linear(name, still, index, f"a relative difference of {relative:.1e} in step {index} with {what}")


def _not_linear(name: str, trajectory: Trajectory, index: int, got: str) -> _NotLinearError:
    where = f"scheduler {name}, step {index} (timestep {trajectory.timesteps[index]:g})"
    return _NotLinearError(where, expected="a step that is linear in sample, model outputs and noise", got=got, fix=FIX)


def _rows(tensors: tuple[torch.Tensor, ...]) -> Array:
    return np.stack([tensor.detach().double().reshape(-1).numpy() for tensor in tensors])
