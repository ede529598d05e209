"""How much a layer suffers from a treatment, from its weight and its statistics alone: no model is run.

    sqnr      |W - W'|^2 / |W|^2      the weight where it is rounded: balanced, rotated, its low-rank branch added
    output    |y - y'|^2 / |y|^2      the output for the rows that calibration kept, activations rounded too; per range of steps

Both are noise over signal, the inverse of what is called SQNR: 0 for no harm, and of one scale for all layers, so that they can be added.
The bias is left out, which is exact and would hide the error.

One weight is in memory at a time. Rows do not say which token they were: of scales per token group the smallest that holds a row is taken.
Convolutions see pixels, not patches: their errors are taken as independent between channels and pixels.

Notation: T steps, K ranges, R rows, C channels, O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch.nn import functional

from dexport.passes.graph import Graph
from dexport.passes.quantization.decide import Decisions
from dexport.passes.quantization.rotation import rotate, rotated_weight
from dexport.passes.quantization.sites import Site, sites
from dexport.passes.quantization.statistics import SiteStatistics
from dexport.passes.quantization.values import ActivationValues, QuantizedPart, SiteValues
from dexport.plugins.formats import format_of
from dexport.plugins.quantized_linear.reference import dequantized, quantized_linear_reference

LayerMetric = Literal["sqnr", "output"]
Errors = tuple[float, ...]
"""One per range of steps."""


def step_ranges(steps: int, count: int) -> tuple[range, ...]:
    """The steps in at most `count` ranges of about the same length, none empty."""
    count = max(1, min(count, steps))
    return tuple(range(k * steps // count, (k + 1) * steps // count) for k in range(count))


def layer_errors(
    graph: Graph, decisions: Decisions, seen: Mapping[str, SiteStatistics], metric: LayerMetric, ranges: tuple[range, ...]
) -> Iterator[tuple[str, Errors]]:
    """Site -> noise over signal in every range, for the sites that have values.

    Args:
        seen: what calibration saw; sites without are judged by their weight.
        ranges: of the steps of the statistics; see `step_ranges`.
    """
    for site in sites(graph):
        values = decisions.values.get(site.name)
        if values is None:
            continue
        weight = graph.weights[site.weight].load().float()
        rows = seen.get(site.name)
        if metric == "sqnr" or rows is None:
            yield site.name, (weight_error(weight, values),) * len(ranges)
        elif site.kind == "conv":
            yield site.name, _conv_errors(site, weight, values, rows, ranges)
        else:
            yield site.name, _linear_errors(weight, values, rows, ranges)


def weight_error(weight: torch.Tensor, values: SiteValues) -> float:
    """Noise over signal of a weight [O, I, ...]."""
    target = _transformed(weight, values)
    noise = (target - rounded_weight(weight.shape, values)).square().sum()
    return float(noise / target.square().sum().clamp_min(1e-30))


def rounded_weight(shape: tuple[int, ...], values: SiteValues) -> torch.Tensor:
    """What a site's weight became [O, I, ...], before the rotation and balancing are undone; its branch is added."""
    total = torch.zeros(shape)
    for part in values.parts:
        real = _real(part)
        if part.channels is None:
            total += real
        else:
            total.index_add_(1, torch.tensor(part.channels), real)
    if values.branch is not None:
        down, up = (factor.load().float() for factor in values.branch)
        total += up @ down
    return total


def _real(part: QuantizedPart) -> torch.Tensor:
    coarse = None if part.coarse is None else part.coarse.load()
    return dequantized(part.codes.load(), part.scale.load(), coarse, part.format)


def _transformed(weight: torch.Tensor, values: SiteValues) -> torch.Tensor:
    """W / m, rotated."""
    if values.multiplier is not None:
        weight = weight / values.multiplier.cpu()
    return weight if values.signs is None else rotated_weight(weight, values.signs.cpu())


def _linear_errors(weight: torch.Tensor, values: SiteValues, seen: SiteStatistics, ranges: tuple[range, ...]) -> Errors:
    """Rows [R, C] through the layer and through what it became."""
    rows = seen.rows.float() if values.multiplier is None else seen.rows.float() * values.multiplier.cpu()
    if values.signs is not None:
        rows = rotate(rows, values.signs.cpu())
    exact = functional.linear(rows, _transformed(weight, values))
    wrong = torch.zeros_like(exact)
    for part in values.parts:
        x = rows if part.channels is None else rows[:, list(part.channels)]
        wrong += _part_output(x, part, seen.row_steps)
    if values.branch is not None:
        down, up = (factor.load().float() for factor in values.branch)
        wrong += functional.linear(functional.linear(rows, down), up)
    return _by_range((exact - wrong).square().sum(1), exact.square().sum(1), seen.row_steps, ranges)


def _part_output(x: torch.Tensor, part: QuantizedPart, steps: torch.Tensor) -> torch.Tensor:
    """Rows [R, C] through one quantized operation."""
    a = part.activations or ActivationValues("", "none")
    centre = None if a.centre is None else _of_rows(a.centre.float(), a.mode, steps)
    scale = None if a.scale is None else a.scale.float()
    if scale is not None and not a.micro:
        moved = x if centre is None else x - centre
        scale = _scale_of_rows(scale, a, moved.abs().amax(1, keepdim=True), steps)
    coarse = None if part.coarse is None else part.coarse.load()
    return quantized_linear_reference(
        x, part.codes.load(), part.scale.load(), coarse, None, scale, centre, part.format, a.format, a.mode, a.block, a.micro
    )


def _of_rows(centre: torch.Tensor, mode: str, steps: torch.Tensor) -> torch.Tensor:
    """[] or [I]; of a table [R, 1] or [R, I]."""
    if mode != "table":
        return centre
    found = centre[steps.clamp(max=len(centre) - 1)]
    return found if found.dim() > 1 else found[:, None]


def _scale_of_rows(scale: torch.Tensor, a: ActivationValues, absmax: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """The scale of every row, [R, 1]. Static: [] or [N, 1]; table: [T] or [T, N]."""
    if a.mode == "table":
        each = scale[steps.clamp(max=len(scale) - 1)].reshape(len(steps), -1)
    else:
        each = scale.reshape(1, -1).expand(len(steps), -1)
    largest = each.amax(1, keepdim=True)
    holds = each * format_of(a.format).largest >= absmax
    return torch.where(holds, each, torch.inf).amin(1, keepdim=True).minimum(largest)


def _conv_errors(site: Site, weight: torch.Tensor, values: SiteValues, seen: SiteStatistics, ranges: tuple[range, ...]) -> Errors:
    """Expected squares, each channel and pixel by itself: noise = sum dW^2 E[x'^2] + sum W^2 E[dx^2], signal = sum W^2 E[x^2]."""
    rows = seen.rows.float()
    rounded = rows.clone()
    for part in values.parts:
        channels = slice(None) if part.channels is None else list(part.channels)
        rounded[:, channels] = _pixels(rows[:, channels], part.activations, seen.absmax[:, channels].amax(1), seen.row_steps)
    power, lost = (w.square().sum((0, *range(2, w.dim()))) for w in (weight, weight - rounded_weight(site.shape, values)))
    groups = rows.shape[1] // weight.shape[1]
    # Of a grouped convolution the kernels of all groups lie on top of each other: each group is taken to have the same share.
    power, lost = (p.repeat(groups) / groups for p in (power, lost))
    noise = rounded.square() @ lost + (rounded - rows).square() @ power
    return _by_range(noise, rows.square() @ power, seen.row_steps, ranges)


def _pixels(rows: torch.Tensor, a: ActivationValues | None, largest: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """Rows [R, C] rounded as a convolution rounds its input; `largest` [T] is the greatest magnitude of every step."""
    if a is None or a.mode == "none":
        return rows
    number = format_of(a.format)
    if (
        a.scale is None
    ):  # a dynamic scale belongs to a whole picture, whose extremes a pixel does not know: those of its step stand for them
        a = replace(a, mode="table", scale=largest.clamp_min(1e-30) / number.largest)
    assert a.scale is not None
    scale = _scale_of_rows(a.scale.float(), a, rows.abs().amax(1, keepdim=True), steps)
    return number.round(rows / scale) * scale


def _by_range(noise: torch.Tensor, signal: torch.Tensor, steps: torch.Tensor, ranges: tuple[range, ...]) -> Errors:
    """Sums of rows [R] in every range; a range without rows takes all of them."""
    found = []
    for span in ranges:
        chosen = (steps >= span.start) & (steps < span.stop)
        if not bool(chosen.any()):
            chosen = torch.ones_like(chosen)
        found.append(float(noise[chosen].sum() / signal[chosen].sum().clamp_min(1e-30)))
    return tuple(found)
