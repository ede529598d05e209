"""Statistics of an activation after what is done to it: multiplied, rotated, some channels picked, leading tokens left out.

Extremes per channel are exact after a product or a choice of channels. Where channels mix (rotation), and for histograms, the reservoir's
rows are transformed instead.

Notation: T steps, C channels, R rows, B bins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from dexport.passes.quantization.statistics import SiteStatistics, histogram


def after(
    seen: SiteStatistics,
    multiplier: torch.Tensor | None = None,
    mix: Callable[[torch.Tensor], torch.Tensor] | None = None,
    channels: tuple[int, ...] | None = None,
    bypass: int = 0,
) -> SiteStatistics:
    """What the quantized operation sees.

    Args:
        multiplier: [C], positive.
        mix: rotation of rows [R, C] -> [R, C], after the product.
        channels: which of the results.
        bypass: leading tokens that do not come here; their extremes are taken out where extremes per token are known.
    """
    if multiplier is None and mix is None and channels is None and not bypass:
        return seen
    rows = seen.rows if multiplier is None else seen.rows * multiplier
    low, high = (e if multiplier is None else e * multiplier for e in (seen.minimum, seen.maximum))
    mean, square = (m if multiplier is None else m * multiplier**p for m, p in ((seen.mean, 1), (seen.square, 2)))
    if mix is not None:
        rows = mix(rows)
        low, high, mean, square = _per_step(rows, seen.row_steps, len(seen.count))
    if channels is not None:
        index = torch.tensor(channels, device=rows.device)
        rows, low, high, mean, square = (t.index_select(-1, index) for t in (rows, low, high, mean, square))
    token_low, token_high = seen.token_minimum, seen.token_maximum
    if bypass and token_low is not None and token_high is not None:
        token_low, token_high = token_low[:, bypass:], token_high[:, bypass:]
        if multiplier is None and mix is None and channels is None:
            low, high = low.clamp(min=token_low.amin(1, keepdim=True)), high.clamp(max=token_high.amax(1, keepdim=True))
    counts, limit = _histograms(rows, seen.row_steps, low, high)
    changed = replace(seen, minimum=low, maximum=high, mean=mean, square=square, histogram=counts, limit=limit, rows=rows)
    tokens_hold = multiplier is None and mix is None and channels is None
    return replace(changed, token_minimum=token_low if tokens_hold else None, token_maximum=token_high if tokens_hold else None)


def _per_step(rows: torch.Tensor, steps: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Minimum, maximum, mean and mean square [T, C] of the rows of each step; a step without rows takes those of all."""
    found = [rows[steps == k] if bool((steps == k).any()) else rows for k in range(count)]
    reduce: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (
        lambda r: r.amin(0),
        lambda r: r.amax(0),
        lambda r: r.mean(0),
        lambda r: r.square().mean(0),
    )
    low, high, mean, square = (torch.stack([f(r) for r in found]) for f in reduce)
    return low, high, mean, square


def _histograms(rows: torch.Tensor, steps: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Counts [T, B] of the rows' values, over limits [T] that are the next powers of two above all magnitudes."""
    largest = torch.maximum(high, -low).amax(1).clamp(min=2.0**-20)
    limits = torch.exp2(torch.floor(torch.log2(largest)) + 1)
    counts = []
    for k, limit in enumerate(limits.tolist()):
        own = steps == k
        chosen = rows[own] if bool(own.any()) else rows
        inside = chosen.abs() < limit  # rows of tokens that bypass, and of other steps, may lie beyond
        counts.append(histogram(chosen if bool(inside.all()) else chosen[inside], limit))
    return torch.stack(counts), limits
