"""The low-rank branch of a site: fitted on what the site saw, and the residual that is quantized instead of the weight."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dexport.passes.graph import Weight
from dexport.passes.quantization.low_rank import low_rank_split
from dexport.passes.quantization.parts import RealWeight
from dexport.passes.quantization.recipe import ActivationSpec, LowRankSpec, WeightSpec
from dexport.passes.quantization.scratch import Scratch
from dexport.passes.quantization.simulate import simulated_activations, simulated_weight
from dexport.passes.quantization.statistics import SiteStatistics


@dataclass(frozen=True)
class Branched:
    """W = up down + residual: [O, r] and [r, I] in 16 bits, [O, I] float32."""

    down: Weight
    up: Weight
    residual: torch.Tensor


def branched(
    weight: RealWeight,
    low_rank: LowRankSpec,
    spec: WeightSpec,
    activations: ActivationSpec | None,
    seen: SiteStatistics | None,
    scratch: Scratch,
    dtype: torch.dtype,
) -> Branched:
    """Splits a weight. With rows of the site the error that is minimised is that of its output, else that of the weight."""
    rows = None if seen is None else seen.rows
    found = low_rank_split(
        weight.read(),
        low_rank.rank,
        low_rank.iterations,
        lambda w: simulated_weight(w, spec),
        rows,
        lambda x: simulated_activations(x, activations),
        dtype=torch.float16 if dtype is torch.float32 else dtype,
    )
    factors = {"down": found.down, "up": found.up}
    kept = scratch.keep(f"{weight.origin} branch of {low_rank} beside {spec} and {activations}", factors)
    return Branched(kept["down"], kept["up"], found.residual)
