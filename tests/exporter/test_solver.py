"""Every scheduler class of diffusers becomes a program that repeats it from the same noise, or is refused with a reason."""

import inspect
import re
from collections.abc import Iterator
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from dexport.errors import UserError
from dexport.exporter.scheduler_run import Schedule, ready_scheduler, step_arguments
from dexport.exporter.solver import Solver, probe
from dexport.exporter.solver_program import (
    NEXT_SAMPLE,
    begin_instructions,
    model_input,
    solver_buffers,
    solver_instructions,
    solver_tables,
    step_component,
)
from dexport.exporter.step_component import StepComponent
from dexport.runtime.interpreter import Array, Component, run_program
from dexport.runtime.noise import TorchNoise
from dexport.runtime.program import Buffer, Combine, Draw, Index, Linear, Program, Ref, Row, Rows, Run, Table, Term
from dexport.runtime.program_check import check_program

pytestmark = pytest.mark.filterwarnings("ignore:.*__array_:DeprecationWarning")  # diffusers with numpy 2

GOLDEN = Path(__file__).parents[1] / "golden" / "schedulers.txt"
SIZES = (3, 4, 5)
GUIDANCE = 2.5
SEED = 7
STEPS = 6
_MINIMAL = {int: 8, float: 1.0, bool: False}


def scheduler_classes() -> dict[str, type]:
    found = {name: getattr(diffusers.schedulers, name) for name in dir(diffusers.schedulers) if name.endswith("Scheduler")}
    return {name: value for name, value in found.items() if isinstance(value, type)}


def variants(scheduler: type) -> Iterator[dict[str, Any]]:
    """The default configuration, and one for each switch that changes the mathematics."""
    yield {}
    if getattr(scheduler, "_backends", None):
        return
    parameters = inspect.signature(scheduler.__init__).parameters
    for name, parameter in parameters.items():
        if re.fullmatch(r"use_\w+_sigmas|stochastic_sampling|rescale_betas_zero_snr", name) and parameter.default is False:
            yield {name: True} | ({"prediction_type": "flow_prediction"} if "flow" in name else {})
        if re.fullmatch(r"clip_sample|clip_denoised", name) and parameter.default is True:
            yield {name: False}
        if name == "thresholding":
            yield {name: True}
        if name == "prediction_type" and parameter.default == "epsilon":
            yield {name: "v_prediction"}
        if name == "solver_order" and parameter.default == 2:
            yield {name: 3}
        if name == "algorithm_type" and "sde" in inspect.getsource(scheduler):
            yield {name: "sde-dpmsolver++"}


def construct(scheduler: type, config: dict[str, Any]) -> Any:
    needed = {}
    if not getattr(scheduler, "_backends", None):
        for name, parameter in list(inspect.signature(scheduler.__init__).parameters.items())[1:]:
            if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
                if parameter.annotation not in _MINIMAL:
                    raise UserError(
                        f"scheduler {scheduler.__name__}", expected="a default for every argument", got=f"none for '{name}'", fix=""
                    )
                needed[name] = _MINIMAL[parameter.annotation]
    return scheduler(**needed, **config)


def case_name(name: str, config: dict[str, Any]) -> str:
    return name if not config else f"{name}({', '.join(f'{key}={value}' for key, value in config.items())})"


CASES = {case_name(name, config): (value, config) for name, value in scheduler_classes().items() for config in variants(value)}


def denoise(latent: Array, time: Array) -> Array:
    """Not linear, and different for the two halves of a guided batch."""
    half = len(latent) // 2
    slope = np.repeat(np.array([0.7, 0.4], np.float32), half).reshape(-1, 1, 1, 1)
    return np.asarray(np.tanh(slope * latent + np.float32(0.001) * time.reshape(1, 1, 1, 1)), np.float32)


def from_diffusers(scheduler: Any, schedule: Schedule, batch: int) -> Array:
    """What a pipeline does: one generator for the first noise and every step's."""
    own, timesteps = ready_scheduler(scheduler, schedule)
    generator = torch.Generator("cpu").manual_seed(SEED)
    sample = torch.randn((batch, *SIZES), generator=generator) * getattr(own, "init_noise_sigma", 1.0)
    original = None
    for index, timestep in enumerate(timesteps):
        scaled = own.scale_model_input(sample, timestep) if hasattr(own, "scale_model_input") else sample
        halves = denoise(torch.cat([scaled, scaled]).numpy(), np.array([float(timestep)], np.float32))
        output = torch.from_numpy(halves[:batch] + np.float32(GUIDANCE) * (halves[batch:] - halves[:batch]))
        arguments = step_arguments(own, schedule, timesteps, index) | {"model_output": output, "sample": sample}
        arguments |= {"old_pred_original_sample": original, "generator": generator}
        accepted = inspect.signature(own.step).parameters
        returned = own.step(**{key: value for key, value in arguments.items() if key in accepted})
        sample, original = returned[0], returned[1] if len(returned) > 1 else None
    return sample.numpy()


def program_of(solver: Solver) -> Program:
    """A guided loop around the toy denoiser."""
    eps, time = Ref("eps"), Ref("time")
    guided = ((Ref("eps", 0, 2), Linear(1.0, {"guidance": -1.0})), (Ref("eps", 1, 2), Linear(0.0, {"guidance": 1.0})))
    iterations = []
    for call in range(len(solver.timesteps)):
        before, latent = model_input(solver, call)
        denoiser = Run("denoiser", {"latent": (latent, latent), "time": (time,)}, {"noise": (eps,)})
        iterations.append((*before, Index(time, "times", call), denoiser, *solver_instructions(solver, call, guided)))
    own_tables = {name: Table("float32", table.shape) for name, table in solver_tables(solver).items()}
    own = {"eps": Buffer("float32", Rows(2, True), SIZES), "time": Buffer("float32", Rows(1))}
    return Program(
        name="toy",
        scheduler=solver.scheduler,
        steps=solver.schedule.steps,
        size=(32, 40),
        start_step=solver.schedule.start,
        timesteps=solver.timesteps,
        parameters={"guidance": 1.0},
        tables={"times": Table("float32", (len(solver.timesteps), 1))} | own_tables,
        buffers={**solver_buffers(solver, SIZES), **own},
        request=(),
        results=("sample",),
        begin=begin_instructions(solver),
        iterations=tuple(iterations),
        end=(),
    )


def run_step(component: StepComponent, inputs: dict[str, Array]) -> dict[str, Array]:
    return {NEXT_SAMPLE: component.graph(*(torch.from_numpy(inputs[name]) for name in component.inputs)).numpy()}


def from_program(solver: Solver, batch: int) -> Array:
    program = program_of(solver)
    check_program(program)
    components: dict[str, Component] = {"denoiser": lambda inputs: {"noise": denoise(inputs["latent"], inputs["time"])}}
    for number, component in enumerate(solver.stepped.components if solver.stepped else ()):
        components[step_component(number)] = partial(run_step, component)
    tables = {"times": np.array(program.timesteps, np.float32).reshape(-1, 1), **solver_tables(solver)}
    noise, parameters = TorchNoise(SEED), {"guidance": GUIDANCE}
    return run_program(program, components, {}, parameters=parameters, noise=noise, tables=tables, batch=batch)["sample"]


def probed(scheduler: Any) -> Solver:
    """Six steps, or two for consistency models that take no more; without the last timestep where it has no successor."""
    steps = STEPS
    try:
        ready_scheduler(scheduler, Schedule(STEPS))
    except UserError as error:
        steps = 2 if "inference" in str(error) else STEPS
    try:
        return probe(scheduler, Schedule(steps))
    except UserError as error:
        if "out of bounds" not in str(error):
            raise
    return probe(scheduler, Schedule(steps, unused=1))


def outcome(scheduler: type, config: dict[str, Any]) -> str:
    try:
        instance = construct(scheduler, config)
        solver = probed(instance)
    except UserError as error:
        numberless = re.sub(r" of \d\.\de[+-]\d+", "", error.got)
        where = error.where.removeprefix(f"scheduler {scheduler.__name__}").removeprefix(", ")
        return f"refused: {f'{where}: ' if where else ''}expected {error.expected}, got {numberless}"
    expected, ours = from_diffusers(instance, solver.schedule, 2), from_program(solver, 2)
    difference = np.linalg.norm(ours - expected) / np.linalg.norm(expected)
    assert difference < 1e-5
    draws = " ".join(f"{count}x{len(list(group))}" for count, group in groupby(step.draws for step in solver.recurrence.steps))
    made = f"{len(solver.stepped.components)} step components" if solver.stepped else f"{solver.recurrence.rank} state buffers"
    return f"program, {made}, noise per step {draws}"


def golden() -> dict[str, str]:
    lines = GOLDEN.read_text("utf-8").splitlines() if GOLDEN.exists() else []
    return dict(line.split(": ", 1) for line in lines)


@pytest.mark.parametrize("case", CASES)
def test_scheduler(case: str, update_golden: bool) -> None:
    try:
        result = outcome(*CASES[case])
    except ImportError as error:
        pytest.skip(f"diffusers: {str(error).strip().splitlines()[0]}")
    if update_golden:
        GOLDEN.write_text("".join(f"{key}: {value}\n" for key, value in sorted((golden() | {case: result}).items())), "utf-8")
    assert golden().get(case) == result


def test_the_golden_file_has_no_others() -> None:
    assert set(golden()) <= set(CASES)


def test_a_later_start_mixes_the_clean_sample_as_diffusers_does() -> None:
    scheduler, schedule = diffusers.DPMSolverMultistepScheduler(), Schedule(STEPS, start=2)
    solver = probe(scheduler, schedule)
    own, timesteps = ready_scheduler(scheduler, schedule)
    clean, noise = torch.full((1, 1), 3.0), torch.full((1, 1), 5.0)
    mixed = float(own.add_noise(clean, noise, timesteps[:1]))
    assert solver.init_clean * 3 + solver.init_noise * 5 == pytest.approx(mixed, rel=1e-6)
    assert solver.timesteps == tuple(float(t) for t in timesteps)
    assert len(solver.timesteps) == STEPS - 2
    draw, mix = begin_instructions(solver, Ref("clean"))
    assert draw == Draw(Ref("sample"))
    assert mix == Combine(Ref("sample"), (Term(Ref("sample"), solver.init_noise), Term(Ref("clean"), solver.init_clean)))
    with pytest.raises(ValueError, match="a run from step 2 needs a clean sample to start from"):
        begin_instructions(solver)


def test_arguments_of_the_pipeline_reach_the_scheduler() -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    solver = probe(scheduler, Schedule(3, set_timesteps={"sigmas": [1.0, 0.7, 0.4], "mu": 0.8}))
    scheduler.set_timesteps(sigmas=[1.0, 0.7, 0.4], mu=0.8)
    assert solver.timesteps == tuple(float(t) for t in scheduler.timesteps)
    stochastic = probe(diffusers.DDIMScheduler(clip_sample=False), Schedule(3, step={"eta": 1.0}))
    assert [step.draws for step in stochastic.recurrence.steps] == [1, 1, 1]


def test_table_coefficients_of_outputs_cannot_be_scaled() -> None:
    solver = probe(diffusers.EulerDiscreteScheduler(), Schedule(2))
    with pytest.raises(ValueError, match="row 0 of table 'scales' cannot be scaled by the solver; combine it into a buffer first"):
        solver_instructions(solver, 0, [(Ref("eps"), Row("scales", 0))])


def test_more_history_than_allowed_is_refused() -> None:
    class Long(diffusers.EulerDiscreteScheduler):  # type: ignore[misc]
        """Adds a model output once more, 13 steps later."""

        waiting: tuple[torch.Tensor, ...] = ()

        def step(self, model_output: Any, timestep: Any, sample: Any, return_dict: bool = True) -> tuple[torch.Tensor]:
            self.waiting = (model_output, *self.waiting[:13])
            return (sample + model_output + (self.waiting[13] if len(self.waiting) > 13 else 0),)

    with pytest.raises(UserError, match=r"scheduler Long: expected at most 12 buffers of history, got 14; choose another scheduler"):
        probe(Long(), Schedule(40))


def test_a_step_that_is_not_linear_is_named() -> None:
    class Clipped(diffusers.EulerDiscreteScheduler):  # type: ignore[misc]
        """Clips in its third step, and remembers the output before."""

        before: torch.Tensor | float = 0.0

        def step(self, model_output: Any, timestep: Any, sample: Any, return_dict: bool = True) -> tuple[torch.Tensor]:
            sample = (sample.clamp(-1, 1) if float(timestep) == 333 else sample) + model_output + self.before
            self.before = model_output
            return (sample,)

    linear = "expected a step that is linear in sample, model outputs and noise"
    with pytest.raises(
        UserError, match=rf"scheduler Clipped, step 1 .*: {linear}, or .*, got a relative difference of .* in step 2 with one-hot"
    ):
        probe(Clipped(), Schedule(4))

    class Shifted(diffusers.EulerDiscreteScheduler):  # type: ignore[misc]
        def step(self, model_output: Any, timestep: Any, sample: Any, return_dict: bool = True) -> tuple[torch.Tensor]:
            return (sample + float(timestep),)

    with pytest.raises(
        UserError, match=rf"scheduler Shifted, step 0 \(timestep 999\): {linear}, got zeros that do not stay zero; choose another"
    ):
        probe(Shifted(), Schedule(4))
    with pytest.raises(UserError, match=rf"step 0 \(timestep 999\): {linear}, got zeros that become NaN"):
        probe(diffusers.LCMScheduler(rescale_betas_zero_snr=True), Schedule(4))


def test_noise_of_other_kinds_is_refused() -> None:
    class Noisy(diffusers.EulerDiscreteScheduler):  # type: ignore[misc]
        draw = staticmethod(torch.rand)

        def step(self, model_output: Any, timestep: Any, sample: Any, return_dict: bool = True) -> tuple[torch.Tensor]:
            return (sample + self.draw(model_output.shape),)

    with pytest.raises(
        UserError, match=r"scheduler Noisy: expected normal noise as the only random numbers, got a call of aten.rand.default"
    ):
        probe(Noisy(), Schedule(2))
    Noisy.draw = staticmethod(lambda shape: torch.randn(shape[:-1])[..., None])
    with pytest.raises(UserError, match=r"expected noise of the sample's shape \[1, 1, 64, 1\], got shape \[1, 1, 64\]"):
        probe(Noisy(), Schedule(2))
    Noisy.draw = staticmethod(lambda shape: torch.randn(shape, generator=torch.Generator().manual_seed(1)))
    with pytest.raises(UserError, match="expected noise from the request's generator, got a generator of its own"):
        probe(Noisy(), Schedule(2))


def test_a_step_that_returns_something_else_is_refused() -> None:
    class Half(diffusers.EulerDiscreteScheduler):  # type: ignore[misc]
        def step(self, model_output: Any, timestep: Any, sample: Any, return_dict: bool = True) -> tuple[torch.Tensor]:
            return (sample[..., :1, :],)

    with pytest.raises(UserError, match=r"step 0 \(timestep 999\): expected a sample of shape \[1, 1, 64, 1\], got float64 \[1, 1, 1, 1\]"):
        probe(Half(), Schedule(2))


def test_a_start_after_the_end_is_refused() -> None:
    with pytest.raises(UserError, match="scheduler EulerDiscreteScheduler: expected a start step below the 4 steps, got 4; start earlier"):
        probe(diffusers.EulerDiscreteScheduler(), Schedule(4, start=4))
