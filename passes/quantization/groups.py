"""Groups of channels or tokens that share a scale, and tokens that are too large for any (DGQ, arXiv 2501.04304; MixDQ, arXiv 2405.17873).

DGQ looks at the extremes m_i, M_i of every channel and of every token, and groups along the axis on which they spread more:

    D = (max M_i - min M_i) + (max m_i - min m_i)

K-means on the pairs (m_i, M_i) makes the groups. Its start is not random: the largest point, then again and again the point that is
farthest from all that were taken, so that outliers have groups of their own and the same statistics give the same groups.

MixDQ's token bypass: the first token of CLIP's text is some sixty times as large as the others. Whether a model has such tokens is read
from the statistics.

Notation: D channels or tokens, K groups, T steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dexport.passes.quantization.ranges import positive
from dexport.plugins.formats import Format

_MOST_ROUNDS = 100
_OUTLIER = 8.0
"""A token is an outlier if its largest magnitude is so many times the median of all tokens: far from both 1 (ordinary) and 60 (CLIP)."""
_MOST_BYPASSED = 0.25
"""Of the tokens: more than that are no outliers but how the model is, and bypassing them would leave little to quantize."""


@dataclass(frozen=True)
class Groups:
    """A partition of D channels or tokens.

    Attributes:
        ids: group of every channel or token, int64 [D]; numbered by the largest magnitude, smallest first.
        permutation: int64 [D]: indices so that groups are neighbours, in order inside each.
        sizes: of the groups, in the order of the permutation.
    """

    ids: torch.Tensor
    permutation: torch.Tensor
    sizes: tuple[int, ...]


def spread(minimum: torch.Tensor, maximum: torch.Tensor) -> float:
    """D of one axis.

    Args:
        minimum, maximum: extremes of every channel or token, over all steps, [D].
    """
    return float((maximum.amax() - maximum.amin()) + (minimum.amax() - minimum.amin()))


def group(minimum: torch.Tensor, maximum: torch.Tensor, count: int) -> Groups:
    """At most `count` groups of neighbouring (minimum, maximum); fewer if there are fewer different pairs. Deterministic.

    Args:
        minimum, maximum: [D], over all steps: which group a channel is in cannot change from step to step, its scale can (`group_scales`).

    Raises:
        ValueError: count below 1, or nothing to group.
    """
    if count < 1 or not len(minimum):
        raise ValueError(f"cannot make {count} groups of {len(minimum)}")
    points = torch.stack([minimum.double(), maximum.double()], 1)
    ids = _k_means(points, _far_apart(points, count))
    # Groups by their largest magnitude; empty ones vanish.
    found = torch.unique(ids)
    absmax = points.abs().amax(1)
    order = torch.stack([absmax[ids == k].amax() for k in found]).argsort()
    ranks = torch.empty(int(found.max()) + 1, dtype=torch.int64, device=ids.device)
    ranks[found[order]] = torch.arange(len(found), device=ids.device)
    ids = ranks[ids]
    return Groups(ids, ids.argsort(stable=True), tuple(torch.bincount(ids).tolist()))


def group_scales(minimum: torch.Tensor, maximum: torch.Tensor, groups: Groups, number: Format) -> torch.Tensor:
    """absmax / largest of every group, positive: [..., D] extremes (of all steps [D], of each [T, D]) -> float32 [..., K]."""
    absmax = torch.maximum(maximum, -minimum).float()
    found = [absmax[..., groups.ids == k].amax(-1) for k in range(len(groups.sizes))]
    return positive(torch.stack(found, -1) / number.largest)


def outlier_tokens(token_minimum: torch.Tensor, token_maximum: torch.Tensor) -> int:
    """How many leading tokens should bypass quantization; 0 for most models.

    Args:
        token_minimum, token_maximum: extremes per step and token, [T, N].
    """
    absmax = torch.maximum(token_maximum, -token_minimum).amax(0)
    large = absmax > _OUTLIER * absmax.median()
    leading = int(large.cumprod(0).sum())
    return leading if leading <= _MOST_BYPASSED * len(absmax) else 0


def _far_apart(points: torch.Tensor, count: int) -> torch.Tensor:
    """Up to `count` different points, each the farthest from those before it, [K, 2]."""
    taken = [points[points.abs().amax(1).argmax()]]
    distance = (points - taken[0]).square().sum(1)
    while len(taken) < count and float(distance.amax()) > 0:
        taken.append(points[distance.argmax()])
        distance = torch.minimum(distance, (points - taken[-1]).square().sum(1))
    return torch.stack(taken)


def _k_means(points: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """Lloyd's rounds until no point changes its group, [D] of group numbers; a group that loses all points keeps its centre."""
    ids = torch.cdist(points, centres).argmin(1)
    for _ in range(_MOST_ROUNDS):
        sums = torch.zeros_like(centres).index_add(0, ids, points)
        sizes = torch.bincount(ids, minlength=len(centres))[:, None]
        centres = torch.where(sizes > 0, sums / sizes.clamp(min=1), centres)
        moved = torch.cdist(points, centres).argmin(1)
        if torch.equal(moved, ids):
            break
        ids = moved
    return ids
