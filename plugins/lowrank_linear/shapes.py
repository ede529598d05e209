"""Which shapes the tensors of `lowrank_linear` have to have."""

from __future__ import annotations

import torch

from dexport.plugins.shapes import require_shapes

GROUP = 64
"""Inputs that share a scale."""


def check_shapes(
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    down: torch.Tensor,
    up: torch.Tensor,
    bias: torch.Tensor | None,
    gate: torch.Tensor | None,
    residual: torch.Tensor | None,
    activation_scale: torch.Tensor | None,
    activation_block: int,
) -> None:
    """Compares all shapes with those that reference.py names.

    Raises:
        ValueError: a tensor of another shape, a gate without a residual or the reverse, or a block of activations that is neither 0 nor 64.
    """
    if activation_block not in (0, GROUP):
        raise ValueError(f"activation_block has to be 0 or {GROUP}, not {activation_block}")
    if (gate is None) != (residual is None):
        raise ValueError("a gate needs a residual, and a residual a gate")
    batch, inputs, outputs, rank = tuple(x.shape[:-2]), x.shape[-1], weight.shape[0], down.shape[0]
    if (activation_block or weight_scale.shape[0] > 1) and inputs % GROUP:
        raise ValueError(f"x has {inputs} inputs: groups need a multiple of {GROUP}")
    groups = inputs // GROUP
    require_shapes(
        {
            "weight": (weight, [(outputs, inputs // 2)]),
            "weight_scale": (weight_scale, [(1, outputs), (groups, outputs)]),
            "down": (down, [(rank, inputs)]),
            "up": (up, [(outputs, rank)]),
            "bias": (bias, [(outputs,)]),
            "gate": (gate, [(outputs,), (*batch, 1, outputs)]),
            "residual": (residual, [(*x.shape[:-1], outputs)]),
            "activation_scale": (activation_scale, [(groups,) if activation_block else (1,)]),
        }
    )
