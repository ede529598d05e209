"""Which calibrated step stands for a step of another schedule, and what is refused."""

from __future__ import annotations

import re

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, SchedulerMixin

from dexport.errors import UserError
from dexport.exporter.scheduler_run import Schedule as SolverSchedule
from dexport.exporter.scheduler_run import ready_scheduler
from dexport.exporter.sigmas import sigmas
from dexport.passes.quantization.matching import check_statistics, match_schedule
from dexport.passes.quantization.statistics import Samples, Schedule, Statistics


def _schedule(scheduler: SchedulerMixin, steps: int) -> Schedule:
    schedule = SolverSchedule(steps)
    timesteps = tuple(float(t) for t in ready_scheduler(scheduler, schedule)[1])
    return Schedule(type(scheduler).__name__, steps, timesteps, sigmas(scheduler, schedule))


def _matched(calibrated: Schedule, other: Schedule) -> list[int]:
    return match_schedule(calibrated, other.timesteps, other.sigmas)


@pytest.mark.parametrize("steps", [1, 4, 20])
def test_a_schedule_matches_itself(steps: int) -> None:
    own = _schedule(DPMSolverMultistepScheduler(), steps)
    assert _matched(own, own) == list(range(steps))


def test_more_and_fewer_steps_go_to_the_nearest_noise_level() -> None:
    calibrated = _schedule(DDIMScheduler(), 20)
    assert _matched(calibrated, _schedule(DDIMScheduler(), 10)) == list(range(1, 20, 2))
    finer = _matched(calibrated, _schedule(DDIMScheduler(), 40))
    assert finer == sorted(finer)
    assert set(finer) == set(range(20))


def test_another_solver_of_the_same_noise_levels_is_fine() -> None:
    flow = _schedule(FlowMatchEulerDiscreteScheduler(), 20)
    shifted = _schedule(FlowMatchEulerDiscreteScheduler(shift=3.0), 20)
    found = _matched(flow, shifted)
    assert all(abs(flow.sigmas[i] - sigma) < 0.03 for i, sigma in zip(found, shifted.sigmas))


def test_too_few_calibrated_steps_are_refused_naming_the_step() -> None:
    with pytest.raises(UserError, match=r"near step \d+ \(timestep \d+, sigma .* nearest of 4; calibrate with the scheduler and the steps"):
        _matched(_schedule(DDIMScheduler(), 4), _schedule(DDIMScheduler(), 50))


def test_other_noise_levels_at_the_same_timesteps_are_refused() -> None:
    with pytest.raises(UserError, match=r"noise levels of DDIMScheduler.* calibrate with this scheduler"):
        _matched(_schedule(DDIMScheduler(), 20), _schedule(FlowMatchEulerDiscreteScheduler(), 20))


def test_statistics_of_another_model_or_size_are_refused() -> None:
    empty = torch.zeros(0)
    found = Statistics("a" * 64, Schedule("X", 1, (0.0,), (0.0,)), (64, 96), 4.5, "uniform", Samples((), (), empty, empty, empty), {})
    check_statistics(found, "file", model="a" * 64, size=(64, 96))
    with pytest.raises(UserError, match=re.escape("expected statistics of model bbbbbbbbbbbb, got those of model aaaaaaaaaaaa")):
        check_statistics(found, "file", model="b" * 64, size=(64, 96))
    with pytest.raises(UserError, match="statistics at 96x64 pixels, got 64x96; calibrate with --size 96x64"):
        check_statistics(found, "file", model="a" * 64, size=(96, 64))
