"""Which axis of an activation is split into groups, and what follows: parts of a linear for channels, a scale per token for tokens.

DGQ (arXiv 2501.04304, section 4.1) takes the axis whose extremes spread more. Tokens have extremes of their own only where their number is
fixed.

Notation: C channels, N tokens, T steps, K groups.
"""

from __future__ import annotations

import re

import torch

from dexport.passes.quantization.groups import group, group_scales, spread
from dexport.passes.quantization.recipe import ActivationSpec
from dexport.passes.quantization.statistics import SiteStatistics
from dexport.passes.quantization.values import ActivationValues
from dexport.plugins.formats import format_of

_GROUPED = re.compile(r"(channel-|token-|)groups-(\d+)")


def channel_groups(seen: SiteStatistics, spec: ActivationSpec) -> list[tuple[int, ...]]:
    """The channels of every group; empty where tokens are grouped, or nothing is."""
    asked = _asked(seen, spec)
    if asked is None or asked[0] != "channel":
        return []
    found = group(seen.minimum.amin(0), seen.maximum.amax(0), asked[1])
    return [tuple(sorted(piece.tolist())) for piece in torch.split(found.permutation, list(found.sizes))]


def token_groups(seen: SiteStatistics, spec: ActivationSpec) -> ActivationValues | None:
    """A scale per token, equal within a group: static [N, 1], table [T, N]; None where channels are grouped, or nothing is."""
    asked = _asked(seen, spec)
    if asked is None or asked[0] != "token":
        return None
    low, high = seen.token_minimum, seen.token_maximum
    assert low is not None and high is not None
    found = group(low.amin(0), high.amax(0), asked[1])
    number = format_of(spec.format)
    if spec.mode == "table":
        return ActivationValues(number.name, spec.mode, scale=group_scales(low, high, found, number)[:, found.ids])
    return ActivationValues(number.name, spec.mode, scale=group_scales(low.amin(0), high.amax(0), found, number)[found.ids][:, None])


def _asked(seen: SiteStatistics, spec: ActivationSpec) -> tuple[str, int] | None:
    """The axis, "channel" or "token", and the number of groups."""
    match = _GROUPED.fullmatch(spec.granularity)
    if match is None:
        return None
    kind, count = match[1].removesuffix("-"), int(match[2])
    if kind:
        return kind, count
    if seen.token_minimum is None or seen.token_maximum is None:
        return "channel", count
    channels = spread(seen.minimum.amin(0), seen.maximum.amax(0))
    tokens = spread(seen.token_minimum.amin(0), seen.token_maximum.amax(0))
    return ("token" if tokens > channels else "channel"), count
