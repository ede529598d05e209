"""Schedulers whose step is not linear but keeps no history (clipping, say): the step itself becomes a small graph.

The graphs take `sample`, `model_output`, `noise0` ... and, where steps differ in numbers, `scalars` [1, n], a row of a table.
Steps of one structure share a graph. Accepted means: two runs with different pasts make the same step of the same tensors, the graph
does not depend on the tensors' shape, and it repeats the scheduler with random tensors of magnitude 1 and 100 to 1e-5.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from dexport.errors import UserError
from dexport.exporter.scheduler_run import FIX, Schedule, Trajectory, call_step, ready_scheduler, scaled_input
from dexport.exporter.step_trace import SCALARS, CannotRecordError, Recorder, Trace, graph_of

_SHAPES = ((1, 3, 4, 5), (2, 4, 3, 2))
_MAGNITUDES = (1.0, 100.0)
_TOLERANCE = 1e-5


@dataclass(frozen=True, eq=False)
class StepComponent:
    """A graph that serves several steps.

    Attributes:
        graph: ATen operations; returns the next sample.
        inputs: its inputs' names, in order.
        table: [uses, 1, n] float32, a row of `scalars` per step that uses the graph; n is 0 when nothing differs.
    """

    graph: fx.GraphModule
    inputs: tuple[str, ...]
    table: npt.NDArray[np.float32]


@dataclass(frozen=True)
class StepUse:
    """Which component makes a step, with which row of its table."""

    component: int
    row: int


@dataclass(frozen=True, eq=False)
class SteppedSolver:
    """Per model call: the scale of the model's input and the component that makes the next sample."""

    input_scales: tuple[float, ...]
    components: tuple[StepComponent, ...]
    uses: tuple[StepUse, ...]


def trace_steps(scheduler: Any, schedule: Schedule, still: Trajectory, reason: str) -> SteppedSolver:
    """Makes components of a scheduler's steps.

    Args:
        scheduler: any diffusers scheduler; not changed.
        schedule: how to set it up.
        still: a run of it, for timesteps and draws.
        reason: why the scheduler is not linear, for errors.

    Raises:
        UserError: names the first step that keeps history or cannot be recorded.
    """
    first, past = (_walk(scheduler, schedule, still, _SHAPES[0], seed, reason) for seed in (1, 2))
    other = _walk(scheduler, schedule, still, _SHAPES[1], seed=1, reason=reason)
    for index, step in enumerate(first):
        if not torch.equal(step.result, past[index].result):
            raise _refused(scheduler, still, index, f"{reason}, and history")
        if step.trace != other[index].trace:
            raise _refused(scheduler, still, index, f"{reason}, and operations that depend on the sample's shape")
    structures: dict[Any, list[int]] = {}
    for index, step in enumerate(first):
        structures.setdefault((step.trace.operations, step.trace.result), []).append(index)
    components = tuple(_component([first[index].trace for index in indices], still.draws[indices[0]]) for indices in structures.values())
    uses = {index: StepUse(number, row) for number, indices in enumerate(structures.values()) for row, index in enumerate(indices)}
    solver = SteppedSolver(tuple(step.input_scale for step in first), components, tuple(uses[index] for index in range(len(first))))
    _check(scheduler, schedule, still, solver, reason)
    return solver


@dataclass(frozen=True, eq=False)
class _Walked:
    """One step of a walk: its trace on tensors that do not depend on the past, what it returned, the model input's scale."""

    trace: Trace
    result: torch.Tensor
    input_scale: float


def _walk(scheduler: Any, schedule: Schedule, still: Trajectory, shape: tuple[int, ...], seed: int, reason: str) -> list[_Walked]:
    """Goes through a run with a random past; records each step beside the run, on a copy of the scheduler."""
    own, timesteps = ready_scheduler(scheduler, schedule)
    past, fixed = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(0)
    walked = []
    for index in range(len(timesteps)):
        tensors = _tensors(still, index, lambda: torch.randn(shape, generator=fixed))
        sample = tensors["sample"]
        scaled = scaled_input(own, sample, timesteps[index])
        scale = float((scaled * sample).sum() / (sample * sample).sum())
        if not torch.allclose(scaled, scale * sample, rtol=_TOLERANCE, atol=0):
            raise _refused(scheduler, still, index, f"{reason}, and a model input that is not the scaled sample")
        recorder = Recorder(tensors)
        try:
            result = call_step(copy.deepcopy(own), schedule, timesteps, index, sample, tensors["model_output"], recorder)[0]
            walked.append(_Walked(recorder.trace(result), result, scale))
        except CannotRecordError as error:
            raise _refused(scheduler, still, index, f"{reason}, and {error}") from None
        other = _tensors(still, index, lambda: torch.randn(shape, generator=past))
        scaled_input(own, other["sample"], timesteps[index])
        call_step(own, schedule, timesteps, index, other["sample"], other["model_output"], Recorder(other))
    return walked


def _tensors(still: Trajectory, index: int, make: Callable[[], torch.Tensor]) -> dict[str, torch.Tensor]:
    names = ["sample", "model_output", *(f"noise{draw}" for draw in range(still.draws[index]))]
    return {name: make() for name in names}


def _component(traces: list[Trace], draws: int) -> StepComponent:
    numbers = np.array([trace.scalars for trace in traces], np.float64).reshape(len(traces), -1)
    differing = [position for position in range(numbers.shape[1]) if np.ptp(numbers[:, position]) > 0]
    columns = {position: column for column, position in enumerate(differing)}
    inputs = ("sample", "model_output", *(f"noise{draw}" for draw in range(draws)), *((SCALARS,) if columns else ()))
    return StepComponent(graph_of(traces[0], inputs, columns), inputs, numbers[:, None, differing].astype(np.float32))


def _check(scheduler: Any, schedule: Schedule, still: Trajectory, solver: SteppedSolver, reason: str) -> None:
    for magnitude in _MAGNITUDES:
        own, timesteps = ready_scheduler(scheduler, schedule)
        generator = torch.Generator().manual_seed(3)
        for index, use in enumerate(solver.uses):
            tensors = _tensors(still, index, lambda: magnitude * torch.randn(_SHAPES[0], generator=generator))  # noqa: B023
            scaled_input(own, tensors["sample"], timesteps[index])
            expected = call_step(own, schedule, timesteps, index, tensors["sample"], tensors["model_output"], Recorder(tensors))[0]
            component = solver.components[use.component]
            tensors[SCALARS] = torch.from_numpy(component.table[use.row])
            given = component.graph(*(tensors[name] for name in component.inputs))
            difference = float((given - expected).norm())
            if not difference <= _TOLERANCE * float(expected.norm()):
                raise _refused(scheduler, still, index, f"{reason}, and its operations depend on its numbers (at magnitude {magnitude:g})")


def _refused(scheduler: Any, still: Trajectory, index: int, got: str) -> UserError:
    where = f"scheduler {type(scheduler).__name__}, step {index} (timestep {still.timesteps[index]:g})"
    expected = "a step that is linear in sample, model outputs and noise, or one of fixed operations without history"
    return UserError(where, expected=expected, got=got, fix=FIX)
