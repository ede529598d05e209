"""Noise levels of a schedule, which tell what a step is whatever its number."""

from __future__ import annotations

from typing import Any

import torch

from dexport.exporter.scheduler_run import Schedule, ready_scheduler
from dexport.exporter.solver import Solver
from dexport.passes.quantization.statistics import Schedule as CalibratedSchedule


def calibrated_schedule(scheduler: Any, solver: Solver) -> CalibratedSchedule:
    """The steps of a solver, as statistics name them; `scheduler` is what it was probed from."""
    levels = sigmas(scheduler, solver.schedule)
    return CalibratedSchedule(scheduler=solver.scheduler, steps=solver.schedule.steps, timesteps=solver.timesteps, sigmas=levels)


def sigmas(scheduler: Any, schedule: Schedule) -> tuple[float, ...]:
    """The noise level before every model call: noise over signal for diffusion, the share of noise for flow matching.

    Taken from the scheduler where it lists them. Else from its cumulated alphas (Ho et al., arXiv 2006.11239), as sqrt((1 - a) / a),
    linearly between timesteps; else the timestep as a share of the trained ones.

    Args:
        scheduler: any diffusers scheduler; not changed.
        schedule: how a pipeline sets it up.

    Raises:
        UserError: the scheduler refuses the schedule.
    """
    own, timesteps = ready_scheduler(scheduler, schedule)
    listed = getattr(own, "sigmas", None)
    begin = schedule.start * getattr(own, "order", 1)
    if listed is not None and len(listed) >= begin + len(timesteps):
        return tuple(float(s) for s in torch.as_tensor(listed)[begin : begin + len(timesteps)])
    times = timesteps.double()
    cumulated = getattr(own, "alphas_cumprod", None)
    if cumulated is None:
        trained = float(own.config.num_train_timesteps) if float(times.max()) > 1 else 1.0  # IPNDM counts from 1 to 0
        return tuple(float(t) / trained for t in times)
    alphas = torch.as_tensor(cumulated).double()
    low = times.floor().long().clamp(0, len(alphas) - 1)
    high = (low + 1).clamp(max=len(alphas) - 1)
    level = torch.lerp(alphas[low], alphas[high], times - low).clamp(1e-12, 1.0)
    return tuple(float(s) for s in ((1 - level) / level).sqrt())
