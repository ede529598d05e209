"""Runs a diffusers scheduler on tensors of our choice: sample, model outputs and noise all come from the caller.

Everything happens in float64, also where a scheduler casts to float32 and back, so that what comes out is exact to
rounding of the scheduler's own constants. Random numbers are caught where PyTorch makes them, whatever way the scheduler takes there.
"""

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dexport.errors import UserError
from dexport.exporter.step_trace import CannotRecordError

_OUR_SEED = 0x5EED_0F_A_9B0BE
_NARROW = (torch.float32, torch.float16, torch.bfloat16)
_NORMAL_OPS = ("aten.randn", "aten.randn_like", "aten.normal_", "aten.normal_functional")
FIX = "choose another scheduler with --scheduler, or another configuration of this one"


@dataclass(frozen=True)
class Schedule:
    """How a pipeline sets its scheduler up.

    Attributes:
        steps: number of inference steps.
        set_timesteps: further arguments of `set_timesteps` (mu, sigmas, ...); with sigmas or timesteps given, `steps` is not passed.
        step: further arguments of `step` (eta, s_noise, ...).
        start: first step that is run; a run from a given picture skips those before it.
        unused: how many timesteps at the end the pipeline leaves out; some schedulers list the clean end as one.
    """

    steps: int
    set_timesteps: Mapping[str, Any] = field(default_factory=dict)
    step: Mapping[str, Any] = field(default_factory=dict)
    start: int = 0
    unused: int = 0


@dataclass(frozen=True)
class Trajectory:
    """What a scheduler did. One entry per model call: its timestep, the model's input, how many draws of noise its step made;
    `samples` has the sample before each call and after the last."""

    timesteps: tuple[float, ...]
    inputs: tuple[torch.Tensor, ...]
    samples: tuple[torch.Tensor, ...]
    draws: tuple[int, ...]


def ready_scheduler(scheduler: Any, schedule: Schedule) -> tuple[Any, torch.Tensor]:
    """A copy of `scheduler` that is set up for sampling, and the timesteps that a pipeline would loop over.

    Raises:
        UserError: the scheduler refuses the arguments or has no `step` or `set_timesteps`.
    """
    name = type(scheduler).__name__
    for method in ("set_timesteps", "step"):
        if not hasattr(scheduler, method):
            raise UserError(f"scheduler {name}", expected=f"a method '{method}'", got="none", fix=FIX)
    own = copy.deepcopy(scheduler)
    steps = () if {"sigmas", "timesteps"} & set(schedule.set_timesteps) else (schedule.steps,)
    with _refusing(name, "set_timesteps"):
        own.set_timesteps(*steps, **schedule.set_timesteps)
        begin = schedule.start * getattr(own, "order", 1)
        timesteps = torch.as_tensor(own.timesteps)[begin : len(own.timesteps) - schedule.unused]
        if begin and hasattr(own, "set_begin_index"):
            own.set_begin_index(begin)
    if not len(timesteps):
        expected = f"a start step below the {schedule.steps} steps"
        raise UserError(f"scheduler {name}", expected=expected, got=str(schedule.start), fix="start earlier")
    return own, timesteps


def run_scheduler(
    scheduler: Any,
    schedule: Schedule,
    sample: torch.Tensor,
    model: Callable[[int, torch.Tensor], torch.Tensor],
    noise: Callable[[int], torch.Tensor],
) -> Trajectory:
    """Runs a copy of `scheduler` from start to end.

    Args:
        scheduler: any diffusers scheduler; not changed.
        schedule: how to set it up.
        sample: [..] float64, the first sample, already scaled.
        model: (index of the call, model input) -> model output, of the sample's shape.
        noise: index of the draw -> noise of the sample's shape.

    Raises:
        UserError: the scheduler raised, wants arguments that a sampler does not have, draws other random numbers than normal
            ones of the sample's shape from the request's generator, or returns something else than a sample.
    """
    own, timesteps = ready_scheduler(scheduler, schedule)
    name = type(scheduler).__name__
    inputs, samples, draws = [], [sample], []
    mode = _Intercept(name, sample.shape, noise)
    original = None
    for index, timestep in enumerate(timesteps):
        with _refusing(name, f"step {index} (timestep {float(timestep):g})"), mode:
            scaled = scaled_input(own, sample, timestep)
        output = model(index, scaled)
        before = mode.drawn
        returned = call_step(own, schedule, timesteps, index, sample, output, mode, original)
        sample, original = returned[0], returned[1] if len(returned) > 1 else None
        inputs.append(scaled)
        samples.append(sample)
        draws.append(mode.drawn - before)
    return Trajectory(tuple(float(t) for t in timesteps), tuple(inputs), tuple(samples), tuple(draws))


def scaled_input(scheduler: Any, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """The model's input; schedulers without `scale_model_input` show the model the sample itself."""
    return torch.as_tensor(scheduler.scale_model_input(sample, timestep)) if hasattr(scheduler, "scale_model_input") else sample


def call_step(
    scheduler: Any,
    schedule: Schedule,
    timesteps: torch.Tensor,
    index: int,
    sample: torch.Tensor,
    output: torch.Tensor,
    mode: TorchDispatchMode,
    original: torch.Tensor | None = None,
) -> Sequence[Any]:
    """Makes step `index` of a ready scheduler under a dispatch mode.

    Args:
        scheduler: from `ready_scheduler`, after the steps before; changed.
        schedule: how it was set up.
        timesteps: from `ready_scheduler`.
        index: which step.
        sample: current sample.
        output: the model's.
        mode: sees every operation.
        original: the second thing that the step before returned, for schedulers that want it back.

    Returns:
        What `step` returns; first of it the next sample.

    Raises:
        UserError: as `run_scheduler`.
    """
    where = f"step {index} (timestep {float(timesteps[index]):g})"
    arguments = step_arguments(scheduler, schedule, timesteps, index)
    arguments |= {"model_output": output, "sample": sample, "old_pred_original_sample": original}
    accepted = inspect.signature(scheduler.step).parameters
    with _refusing(type(scheduler).__name__, where), torch.no_grad(), mode:
        returned = scheduler.step(**{name: value for name, value in arguments.items() if name in accepted})
    return _with_sample(returned, sample, f"scheduler {type(scheduler).__name__}, {where}")


def step_arguments(scheduler: Any, schedule: Schedule, timesteps: torch.Tensor, index: int) -> dict[str, Any]:
    """What pipelines pass to `step` besides tensors, by the names that diffusers' schedulers use for it.

    Raises:
        UserError: `step` has a required parameter that no sampler can fill.
    """
    parameters = inspect.signature(scheduler.step).parameters
    timestep = timesteps[index]
    values: dict[str, Any] = {
        "timestep": timestep[None] if parameters.get("timestep") and parameters["timestep"].annotation is torch.Tensor else timestep,
        "timestep_back": timesteps[index - 1] if index else None,
        "prev_timestep": timesteps[index + 1] if index + 1 < len(timesteps) else None,
        "generator": torch.Generator("cpu").manual_seed(_OUR_SEED),
        "return_dict": False,
        **schedule.step,
    }
    known = {*values, "model_output", "sample", "old_pred_original_sample"}
    for parameter in parameters.values():
        required = parameter.default is parameter.empty and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        if required and parameter.name not in known:
            where = f"scheduler {type(scheduler).__name__}"
            raise UserError(
                where, expected="a step of model output, timestep and sample", got=f"one that needs '{parameter.name}'", fix=FIX
            )
    return values


def _with_sample(returned: Any, sample: torch.Tensor, where: str) -> Sequence[Any]:
    sequence = returned if isinstance(returned, Sequence) else (returned,)
    first = sequence[0]
    if not isinstance(first, torch.Tensor) or first.shape != sample.shape or not first.is_floating_point():
        got = f"{str(first.dtype).removeprefix('torch.')} {list(first.shape)}" if isinstance(first, torch.Tensor) else type(first).__name__
        raise UserError(where, expected=f"a sample of shape {list(sample.shape)}", got=got, fix=FIX)
    return sequence


class _refusing:
    """Turns whatever a scheduler raises into a refusal that quotes it."""

    def __init__(self, name: str, stage: str) -> None:
        self._where = f"scheduler {name}, {stage}"

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _traceback: object) -> None:
        if error is None or isinstance(error, (UserError, CannotRecordError)) or not isinstance(error, Exception):
            return
        lines = str(error).strip().splitlines() or [""]
        raise UserError(self._where, expected="it to run", got=f"{type(error).__name__}: {lines[0][:160]}", fix=FIX) from error


class _Intercept(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Hands out the caller's noise, refuses other randomness, keeps float64."""

    def __init__(self, name: str, shape: torch.Size, noise: Callable[[int], torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._where, self._shape, self._noise = f"scheduler {name}", shape, noise
        self.drawn = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded in func.tags:
            return self._draw(func, args, kwargs)
        if func is torch.ops.aten._to_copy.default and kwargs.get("dtype") in _NARROW:
            tensor = args[0]
            if tensor.dtype == torch.float64 and tensor.numel() > 1:
                kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)

    def _draw(self, func: Any, args: Any, kwargs: dict[str, Any]) -> torch.Tensor:
        if str(func).rpartition(".")[0] not in _NORMAL_OPS:
            expected = "normal noise as the only random numbers"
            raise UserError(self._where, expected=expected, got=f"a call of {func}", fix=FIX)
        generator = kwargs.get("generator")
        if generator is not None and generator.initial_seed() != _OUR_SEED:
            expected = "noise from the request's generator"
            raise UserError(self._where, expected=expected, got="a generator of its own", fix=FIX)
        shape = args[0].shape if isinstance(args[0], torch.Tensor) else torch.Size(args[0])
        if shape != self._shape:
            expected = f"noise of the sample's shape {list(self._shape)}"
            raise UserError(self._where, expected=expected, got=f"shape {list(shape)}", fix=FIX)
        noise = self._noise(self.drawn)
        self.drawn += 1
        return args[0].copy_(noise) if func is torch.ops.aten.normal_.default else noise.clone()
