"""Scales of activations from statistics: how much of what was seen at a site the grid of a format covers.

    static   one scale: histograms of all steps are pooled
    table    a scale per step

The ranges of ranges.py, on histograms: "percentile-P" leaves out (100 - P) % of the numbers (half of them at each end of a centred
range), "mse" and "float-search" count a bin as numbers spread evenly in it. "ema" is the running mean (0.95) of each step's extremes in the
order of the steps, static only: for a table every step has its own, so it is the same as "minmax". A centred range is [minimum, maximum]
instead of [-absmax, absmax]; its searches move both ends together, then each by itself (the one- and two-dimensional searches of EDA-DM,
arXiv 2401.04585).

Notation: T steps, B bins, N tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dexport.passes.quantization.ranges import FLOAT_SHRINKS, POWER, SHRINKS, percentile_of, positive
from dexport.passes.quantization.recipe import MICRO_FORMATS, ActivationSpec
from dexport.passes.quantization.statistics import SiteStatistics
from dexport.plugins.formats import Format, format_of

_DECAY = 0.95
_PARTS = 8
"""Numbers that stand for a bin: a bin may be as wide as a step of INT8, so that its middle alone would say nothing about rounding."""


@dataclass(frozen=True)
class ActivationRange:
    """What a static scale or a table of scales holds.

    Attributes:
        format: name in plugins/formats.py (of NVFP4 that of the codes).
        scale: float32; static [] or per token [N, 1], table [T] or [T, N].
        centre: as scale, per tensor only; None where the range is not centred.
    """

    format: str
    scale: torch.Tensor
    centre: torch.Tensor | None


@dataclass(frozen=True)
class Distribution:
    """The numbers of one tensor.

    Attributes:
        histogram: counts, [B], evenly over [-limit, limit].
        limit, minimum, maximum: float32 [].
    """

    histogram: torch.Tensor
    limit: torch.Tensor
    minimum: torch.Tensor
    maximum: torch.Tensor


def activation_range(seen: SiteStatistics, spec: ActivationSpec) -> ActivationRange:
    """The scale of a static activation or the scales of a table.

    Raises:
        ValueError: a dynamic mode other than of NVFP4, statistics without tokens, or a combination that has no meaning; says which.
    """
    if spec.format == "nvfp4":
        name = MICRO_FORMATS[spec.format][0]
        return ActivationRange(name, positive(seen.absmax.amax() / (format_of(name).largest * 448)), None)
    if spec.mode not in ("static", "table"):
        raise ValueError(f"activations in mode {spec.mode} take their scales from themselves, not from statistics")
    numbers = [format_of(name) for name in spec.format.split("|")]
    if spec.granularity == "token":
        return _per_token(seen, spec, numbers)
    if spec.granularity != "tensor":
        raise ValueError(f"a range per {spec.granularity} is found by groups.py")
    steps = [step(seen, k) for k in range(len(seen.count))]
    found = [pooled(steps, ema=spec.range == "ema")] if spec.mode == "static" else steps
    number = numbers[0] if len(numbers) == 1 else _best_format(found, numbers, spec)
    ranges = [histogram_range(each, number, spec.range, spec.centred) for each in found]
    scale, centre = torch.stack([s for s, _ in ranges]), torch.stack([s.new_zeros(()) if c is None else c for s, c in ranges])
    if spec.mode == "static":
        scale, centre = scale[0], centre[0]
    return ActivationRange(number.name, scale, centre if spec.centred else None)


def step(seen: SiteStatistics, k: int) -> Distribution:
    """What was seen at step k."""
    return Distribution(seen.histogram[k], seen.limit[k], seen.minimum[k].amin(), seen.maximum[k].amax())


def pooled(steps: Sequence[Distribution], ema: bool = False) -> Distribution:
    """All steps as one: counts are added (limits are powers of two, so that bins fall into bins); the outer extremes, or running means."""
    limit = torch.stack([each.limit for each in steps]).amax()
    histogram = torch.zeros_like(steps[0].histogram)
    bins = len(histogram)
    middles = (torch.arange(bins, device=histogram.device) + 0.5) * 2 / bins - 1
    for each in steps:
        index = ((middles * (each.limit / limit) + 1) * bins / 2).long()
        histogram = histogram.index_add(0, index, each.histogram)
    minimum, maximum = (torch.stack([getattr(each, name) for each in steps]) for name in ("minimum", "maximum"))
    if ema:
        return Distribution(histogram, limit, _running_mean(minimum), _running_mean(maximum))
    return Distribution(histogram, limit, minimum.amin(), maximum.amax())


def histogram_range(seen: Distribution, number: Format, range: str, centred: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Scale [] and centre [] (None unless centred) of one distribution, float32.

    Raises:
        ValueError: unknown range.
    """
    low, high = _ends(seen, range, centred)
    if range in ("mse", "float-search"):
        shrinks, power = (SHRINKS, POWER) if range == "mse" else (FLOAT_SHRINKS, 2.0)
        low, high = _least_error(seen, low, high, number, torch.tensor(shrinks, device=low.device), power, centred)
    scale = positive((high - low) / 2 / number.largest)
    return scale, (low + high) / 2 if centred else None


def _running_mean(values: torch.Tensor) -> torch.Tensor:
    """[T] -> []."""
    mean = values[0]
    for value in values[1:]:
        mean = _DECAY * mean + (1 - _DECAY) * value
    return mean


def _ends(seen: Distribution, range: str, centred: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The range before any search, [] and []; symmetric unless centred."""
    absmax = torch.maximum(seen.maximum, -seen.minimum)
    part = percentile_of(range)
    if part is None:
        if range not in ("minmax", "ema", "mse", "float-search"):
            raise ValueError(f"'{range}': expected minmax, mse, percentile-P, ema or float-search")
        return (seen.minimum, seen.maximum) if centred else (-absmax, absmax)
    half = len(seen.histogram) // 2
    if not centred:
        magnitudes = seen.histogram[half:] + seen.histogram[:half].flip(0)
        end = torch.minimum(_quantile(magnitudes, part) * seen.limit, absmax)
        return -end, end
    outside = (1 - part) / 2
    low, high = (_quantile(seen.histogram, p) * 2 * seen.limit - seen.limit for p in (outside, 1 - outside))
    return torch.maximum(low, seen.minimum), torch.minimum(high, seen.maximum)


def _quantile(counts: torch.Tensor, part: float) -> torch.Tensor:
    """Where, as a fraction of the bins, `part` of the counts lies below; linear inside a bin. float32 []."""
    total = counts.double().cumsum(0)
    wanted = part * total[-1]
    index = torch.searchsorted(total, wanted).clamp(max=len(counts) - 1)
    inside = (wanted - (total[index] - counts[index])) / counts[index].clamp(min=1)
    return ((index + inside.clamp(0, 1)) / len(counts)).float()


def _least_error(
    seen: Distribution, low: torch.Tensor, high: torch.Tensor, number: Format, shrinks: torch.Tensor, power: float, centred: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The ends with the least error, each of them moved towards (or away from) the middle."""
    x, count = _points(seen)
    middle, half = (low + high) / 2, (high - low) / 2

    def best(lows: torch.Tensor, highs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scale, centre = positive((highs - lows) / 2 / number.largest)[:, None], ((lows + highs) / 2)[:, None]
        error = number.round((x - centre) / scale).mul_(scale).add_(centre).sub_(x).abs_().pow_(power) @ count
        index = error.argmin()
        return lows[index], highs[index]

    low, high = best(middle - half * shrinks, middle + half * shrinks)
    if centred:
        low, high = best(middle - half * shrinks, high.expand(len(shrinks)))
        low, high = best(low.expand(len(shrinks)), middle + half * shrinks)
    return low, high


def _points(seen: Distribution) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers that stand for those in the bins that are not empty, and how many each stands for: float32 [P], [P]."""
    bins = len(seen.histogram)
    parts = ((torch.arange(bins * _PARTS, device=seen.limit.device) + 0.5) / (bins * _PARTS) * 2 - 1) * seen.limit
    count = (seen.histogram.float() / _PARTS).repeat_interleave(_PARTS)
    return torch.minimum(torch.maximum(parts, seen.minimum), seen.maximum)[count > 0], count[count > 0]


def _best_format(found: Sequence[Distribution], numbers: Sequence[Format], spec: ActivationSpec) -> Format:
    """The format with the least squared error over all steps, each with its own best ranges."""

    def error(number: Format) -> float:
        total = 0.0
        for each in found:
            scale, centre = histogram_range(each, number, spec.range, spec.centred)
            x, count = _points(each)
            moved = x if centre is None else x - centre
            total += float((number.round(moved / scale) * scale - moved).square().double() @ count.double())
        return total

    return min(numbers, key=error)


def _per_token(seen: SiteStatistics, spec: ActivationSpec, numbers: Sequence[Format]) -> ActivationRange:
    """A scale per token, from extremes alone: [N, 1] or [T, N]."""
    if seen.token_minimum is None or seen.token_maximum is None:
        raise ValueError("the number of tokens is not fixed: a scale per token needs mode dynamic")
    if spec.range not in ("minmax", "ema") or spec.centred or len(numbers) > 1:
        raise ValueError("static scales per token are known by their extremes only: one format, range minmax or ema, not centred")
    absmax = torch.maximum(seen.token_maximum, -seen.token_minimum)
    if spec.mode == "static":
        over_steps = _running_mean(absmax) if spec.range == "ema" else absmax.amax(0)
        return ActivationRange(numbers[0].name, positive(over_steps / numbers[0].largest)[:, None], None)
    return ActivationRange(numbers[0].name, positive(absmax / numbers[0].largest), None)
