"""Moments of runs: what they hold is what the calibration saw, and an unchanged loop answers the same."""

from __future__ import annotations

import pytest
import torch

from dexport.exporter.moments import Moment, answer, first_pictures, moments
from dexport.exporter.torch_pipeline import TorchPipeline, torch_pipeline
from dexport.passes.quantization.statistics import Statistics


@pytest.fixture(scope="module")
def found(opened: TorchPipeline, calibrated: Statistics) -> tuple[Moment, ...]:
    return moments(opened, calibrated, 2, (0, 3))


def test_they_are_the_samples_of_the_calibration(opened: TorchPipeline, calibrated: Statistics, found: tuple[Moment, ...]) -> None:
    samples, latent = calibrated.samples, opened.split.denoiser.loop.inputs[0].name
    assert [m.step for m in found] == [0, 3]
    for moment in found:
        assert moment.timestep == calibrated.schedule.timesteps[moment.step]
        ((call,), rows) = moment.calls, 0
        assert len(call[latent]) == 2 * moment.pictures == 4  # both halves of the guidance
        for step, picture, value in zip(samples.steps.tolist(), samples.pictures.tolist(), samples.latents):
            if step == moment.step and picture < 2:
                rows += 1
                torch.testing.assert_close(call[latent][picture], value, rtol=1e-4, atol=1e-4)
                torch.testing.assert_close(call[latent][2 + picture], value, rtol=1e-4, atol=1e-4)
        assert rows == 2


def test_an_unchanged_loop_answers_the_same(opened: TorchPipeline, found: tuple[Moment, ...]) -> None:
    for moment in found:
        again = answer(opened.split.denoiser.loop, moment, None, torch.empty(0))
        assert torch.equal(again, moment.output)
        unconditional, conditional = moment.halves(again) or (again, again)
        assert not torch.allclose(unconditional, conditional)


def test_halves_that_run_in_turn_are_joined(opened: TorchPipeline, calibrated: Statistics, found: tuple[Moment, ...]) -> None:
    from dataclasses import replace

    plan = replace(opened.plan, options=replace(opened.plan.options, guidance_batching=False))
    (moment,) = moments(torch_pipeline(plan, opened.split, opened.solver), calibrated, 2, (0,))
    assert len(moment.calls) == 2
    torch.testing.assert_close(moment.output, found[0].output, rtol=1e-4, atol=1e-5)
    assert torch.equal(answer(opened.split.denoiser.loop, moment, None, torch.empty(0)), moment.output)


def test_steps_without_guidance_have_no_halves(opened: TorchPipeline, calibrated: Statistics) -> None:
    from dataclasses import replace

    plan = replace(opened.plan, options=replace(opened.plan.options, guidance_interval=(0.0, 0.4)))
    first, last = moments(torch_pipeline(plan, opened.split, opened.solver), calibrated, 2, (0, 3))
    assert first.halves(first.output) is not None
    assert last.halves(last.output) is None and len(last.output) == 2


def test_first_pictures(opened: TorchPipeline, calibrated: Statistics) -> None:
    assert first_pictures(opened, calibrated, 2) == (["a red circle", "a large blue square"], [5, 6])
    assert len(first_pictures(opened, calibrated, 9)[0]) == 3
