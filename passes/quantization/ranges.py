"""Scales of weights: how much of a group's range the grid of a format covers.

A group is what shares a scale: the whole weight, an output channel, or N neighbouring inputs of one output channel.

    minmax          the largest magnitude meets the largest number of the format
    mse             the same range, shrunk in 80 steps of 1 %: the step with the least mean |x - Q(x)|^2.4 (the search of Q-Diffusion, arXiv
                    2302.04304, and most methods after it)
    percentile-P    the smallest magnitude that P % of the numbers do not exceed meets the largest number
    float-search    111 ranges from 0.1 to 1.2 times the largest magnitude: the one with the least squared error. A real-valued exponent
                    bias of a float is nothing but a scale, so this is the search of Low-Bitwidth Floating Point (arXiv 2408.06995)

Notation: O outputs, I inputs, G groups, n numbers in a group.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from dexport.plugins.formats import Format

SHRINKS = tuple(1 - step / 100 for step in range(80))
"""Candidates of "mse", as parts of the full range."""
FLOAT_SHRINKS = tuple(0.1 + step / 100 for step in range(111))
"""Candidates of "float-search"."""
POWER = 2.4
"""Exponent of the error in "mse"; between 2, which lets single outliers decide too little, and 4, where they decide alone."""

_PIECE = 2**16
"""Numbers that are worked on at once: the passes of a search then stay in the processor's cache."""


def weight_scale(weight: torch.Tensor, number: Format, granularity: str, range: str = "minmax") -> torch.Tensor:
    """The scale of every group, positive (1 for groups of zeros), shaped for the quantized operations.

    Args:
        weight: [O, I, ...] floating.
        granularity: "tensor", "channel" or "block-N" (linears only).
        range: see the module.

    Returns:
        float32 [1, 1, ...], [O, 1, ...] or [O, I/N].

    Raises:
        ValueError: I is no multiple of N, the weight of "block-N" has a kernel, or an unknown granularity or range.
    """
    groups, shape = _groups(weight.float(), granularity)
    pieces = [groups] if range == "minmax" else torch.split(groups, max(1, _PIECE // groups.shape[1]))
    return torch.cat([_scale(piece, number, range) for piece in pieces]).reshape(shape)


def float_search(
    weight: torch.Tensor, formats: Sequence[Format], granularity: str = "tensor", range: str = "float-search"
) -> tuple[Format, torch.Tensor]:
    """The format among `formats` with the least squared error over the whole weight, each with its own best scales.

    Returns:
        The format, and the scales as `weight_scale` gives them. The first of equals wins.
    """
    if len(formats) == 1:
        return formats[0], weight_scale(weight, formats[0], granularity, range)
    groups, _ = _groups(weight.float(), granularity)
    found = []
    for number in formats:
        scale = weight_scale(weight, number, granularity, range)
        found.append((float(group_error(groups, scale.flatten(), number, 2.0).double().sum()), number, scale))
    _, number, scale = min(found, key=lambda each: each[0])
    return number, scale


def group_error(groups: torch.Tensor, scale: torch.Tensor, number: Format, power: float) -> torch.Tensor:
    """sum |x - scale * round(x / scale)|^power of every group, [G, n] and [G] -> [G]."""
    total = torch.zeros_like(scale)
    columns = max(1, _PIECE // groups.shape[0])
    for piece in torch.split(groups, columns, 1):
        error = (number.round(piece / scale[:, None]) * scale[:, None]).sub_(piece).abs_()
        total += (error.square_() if power == 2 else error.log2_().mul_(power).exp2_()).sum(1)  # pow is half as fast
    return total


def percentile_of(range: str) -> float | None:
    """P of "percentile-P" as a fraction; None for other ranges.

    Raises:
        ValueError: P is no number above 0 and at most 100.
    """
    head, _, tail = range.partition("-")
    if head != "percentile":
        return None
    try:
        part = float(tail) / 100
    except ValueError:
        part = math.nan
    if not 0 < part <= 1:
        raise ValueError(f"'{range}': expected percentile-P with P above 0 and at most 100")
    return part


def positive(scale: torch.Tensor) -> torch.Tensor:
    """The scale, with 1 where it is 0: a group of zeros has no range, and any scale keeps its zeros."""
    return torch.where(scale > 0, scale, 1.0)


def _groups(weight: torch.Tensor, granularity: str) -> tuple[torch.Tensor, tuple[int, ...]]:
    """The weight as [G, n], and the shape of its scales."""
    outputs, inputs, *kernel = weight.shape
    if granularity == "tensor":
        return weight.reshape(1, -1), (1, 1, *[1] * len(kernel))
    if granularity == "channel":
        return weight.reshape(outputs, -1), (outputs, 1, *[1] * len(kernel))
    head, _, tail = granularity.partition("-")
    if head != "block" or not tail.isdigit() or int(tail) == 0:
        raise ValueError(f"'{granularity}': expected tensor, channel or block-N")
    block = int(tail)
    if kernel:
        raise ValueError(f"blocks of {block} inputs need a linear's weight, not one with a kernel {tuple(weight.shape)}")
    if inputs % block:
        raise ValueError(f"{inputs} inputs are no multiple of the block of {block}")
    return weight.reshape(-1, block), (outputs, inputs // block)


def _scale(groups: torch.Tensor, number: Format, range: str) -> torch.Tensor:
    """[G, n] -> [G]."""
    largest = torch.maximum(groups.amax(1), -groups.amin(1))
    full = positive(largest / number.largest)
    if range == "minmax":
        return full
    if range == "mse":
        return _least_error(groups, full, number, SHRINKS, POWER)
    if range == "float-search":
        return _least_error(groups, full, number, FLOAT_SHRINKS, 2.0)
    part = percentile_of(range)
    if part is None:
        raise ValueError(f"'{range}': expected minmax, mse, percentile-P or float-search")
    rank = max(1, math.ceil(part * groups.shape[1] - 1e-9))
    return positive(groups.abs().kthvalue(rank, 1).values / number.largest)


def _least_error(groups: torch.Tensor, full: torch.Tensor, number: Format, shrinks: Sequence[float], power: float) -> torch.Tensor:
    """The multiple of `full` with the least error, for every group by itself; the first of equals."""
    best, least = full, torch.full_like(full, math.inf)
    for shrink in shrinks:
        scale = full * shrink
        error = group_error(groups, scale, number, power)
        best = torch.where(error < least, scale, best)
        least = torch.minimum(error, least)
    return best
