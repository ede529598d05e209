"""Time of a step, from the graphs of a tiny pipeline."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dexport.exporter.latency import StepLatency, step_latency
from dexport.exporter.operations import Operations
from dexport.exporter.torch_pipeline import TorchPipeline
from dexport.passes.graph import BATCH, STEPS
from dexport.passes.quantization.recipe import ActivationSpec, LowRankSpec, Treatment, WeightSpec
from dexport.passes.quantization.sites import sites
from dexport.targets.catalogue import find
from dexport.targets.latency import total

DEVICE = "rtx-5090"
W8A8 = Treatment(weights=WeightSpec(format="int8"), activations=ActivationSpec(format="int8", mode="dynamic", granularity="token"))


def test_a_step_is_its_layers_and_the_rest(opened: TorchPipeline) -> None:
    loop = opened.split.denoiser.loop
    step = StepLatency(loop, find(DEVICE), rows=2)
    every = sites(loop)
    whole = total(Operations(loop, {BATCH: 2, STEPS: 1}).all(), find(DEVICE))
    layers = sum(step.layer(site, Treatment()) for site in every)
    assert 0 < layers < whole
    assert step.others(every) == pytest.approx(whole - layers)
    assert step.others([]) == pytest.approx(whole)


def test_treatments_cost_what_their_bits_say(opened: TorchPipeline) -> None:
    """For few tokens, weights are what layers wait for."""
    loop = opened.split.denoiser.loop
    step = StepLatency(loop, find(DEVICE), rows=1)
    site = next(s for s in sites(loop) if s.kind == "linear")
    four = Treatment(weights=WeightSpec(format="int4", granularity="block-16"))
    micro = Treatment(weights=WeightSpec(format="nvfp4"), activations=ActivationSpec(format="nvfp4", mode="dynamic"))
    kept, w8, w4, w4a4 = (step.layer(site, t) for t in (Treatment(), W8A8, four, micro))
    assert w4a4 < w8 < kept and w4 < kept
    assert step.layer(site, replace(W8A8, low_rank=LowRankSpec(rank=2))) > w8


def test_guidance_in_turn_calls_the_loop_twice(opened: TorchPipeline) -> None:
    loop = opened.split.denoiser.loop
    plan = replace(opened.plan, target=find(DEVICE))
    together = step_latency(loop, plan)
    in_turn = step_latency(loop, replace(plan, options=replace(plan.options, guidance_batching=False)))
    assert (together.rows, together.calls, in_turn.rows, in_turn.calls) == (2, 1, 1, 2)
    assert together.others([]) < in_turn.others([]) <= 2 * together.others([])
