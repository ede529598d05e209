"""Noise levels, from schedulers that list them and from those that do not."""

from __future__ import annotations

import diffusers
import pytest
import torch

from dexport.exporter.scheduler_run import Schedule
from dexport.exporter.sigmas import sigmas


def test_listed_noise_levels_are_taken() -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    assert sigmas(scheduler, Schedule(4)) == pytest.approx((1.0, 0.667, 0.334, 0.001), abs=1e-3)
    assert sigmas(scheduler, Schedule(4, start=2)) == pytest.approx((0.334, 0.001), abs=1e-3)


def test_others_are_noise_over_signal_at_the_timestep() -> None:
    scheduler = diffusers.DDIMScheduler()
    found = sigmas(scheduler, Schedule(4))
    alphas = scheduler.alphas_cumprod[torch.tensor([750, 500, 250, 0])].double()
    assert found == pytest.approx(((1 - alphas) / alphas).sqrt().tolist(), rel=1e-6)
    listed = sigmas(diffusers.DPMSolverMultistepScheduler(), Schedule(4))
    assert found[1] == pytest.approx(listed[2], rel=1e-3)  # both at timestep 500


@pytest.mark.parametrize("name", ["HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "PNDMScheduler", "IPNDMScheduler", "LCMScheduler"])
def test_there_is_one_per_call_and_they_fall(name: str) -> None:
    schedule = Schedule(6)
    found = sigmas(getattr(diffusers, name)(), schedule)
    assert list(found) == sorted(found, reverse=True)
    assert found[0] > 0.9
    assert len(found) >= 6
