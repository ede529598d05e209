"""AdaRound: rounding of weights that is learned (Nagel et al., arXiv 2004.10568), on any grid.

A weight lies between two neighbours of its grid. A variable V per weight says how far up it goes:

    W(V) = (lower + h(V) gap) steps    h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1)

V starts where W(V) is the weight itself and ends where h is 0 or 1, driven there by sum(1 - |2h - 1|^beta) while beta falls.
On an even grid every gap is 1. On the grid of a float it grows with the number; FP4DiT (arXiv 2503.15465) then divides V by
the step, sigmoid(V / step), so that weights with large steps move more slowly, as they change the output more. Here steps are measured in
units of their mean, which is the same with a learning rate that is the same for every layer.

Notation: O outputs, I inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dexport.passes.quantization.weights import QuantizedWeight, WeightGrid
from dexport.plugins.formats import Format

_LOW, _HIGH = -0.1, 1.1
"""gamma and zeta of the paper: h reaches 0 and 1 at finite V."""


@dataclass(frozen=True)
class SoftRounding:
    """A weight between its neighbours.

    Attributes:
        grid: of the weight.
        steps: scale of every element, broadcastable to [O, I, ...].
        lower: the grid number (at scale 1) that is not above the weight, [O, I, ...].
        gap: from there to the next one, [O, I, ...] or [].
        divisor: of V, in scale-aware rounding; [] of 1 otherwise.
        start: V for which `weight` is the weight, [O, I, ...] (clipped to the range of the grid).
    """

    grid: WeightGrid
    steps: torch.Tensor
    lower: torch.Tensor
    gap: torch.Tensor
    divisor: torch.Tensor
    start: torch.Tensor

    def up(self, v: torch.Tensor) -> torch.Tensor:
        """h(V), from 0 to 1; differentiable."""
        return (torch.sigmoid(v / self.divisor) * (_HIGH - _LOW) + _LOW).clamp(0, 1)

    def weight(self, v: torch.Tensor) -> torch.Tensor:
        """W(V), float32 [O, I, ...]; differentiable."""
        return self._clipped(self.lower + self.up(v) * self.gap) * self.steps

    def hard(self, v: torch.Tensor) -> QuantizedWeight:
        """The codes that V has decided for: up where h is at least a half."""
        number = self.grid.number
        codes = number.encode(self._clipped(self.lower + (self.up(v) >= 0.5) * self.gap))
        return QuantizedWeight(codes, self.grid.scale, self.grid.coarse, self.grid.format)

    def _clipped(self, x: torch.Tensor) -> torch.Tensor:
        return x.clamp(self.grid.number.lowest, self.grid.number.largest)


def soft_rounding(weight: torch.Tensor, grid: WeightGrid, scale_aware: bool = False) -> SoftRounding:
    """A weight [O, I, ...] as the start of learned rounding; `scale_aware` as in FP4DiT."""
    steps, number = grid.steps(weight.shape[1]), grid.number
    x = (weight.float() / steps).clamp(number.lowest, number.largest)
    lower, gap = neighbours(x, number)
    divisor = torch.ones((), device=x.device)
    if scale_aware:
        size = (gap * steps).expand(x.shape)
        divisor = size / size.mean()
    fraction = ((x - lower) / gap).clamp(0, 1)
    return SoftRounding(grid, steps, lower, gap, divisor, divisor * torch.logit((fraction - _LOW) / (_HIGH - _LOW)))


def undecided(up: torch.Tensor, beta: float) -> torch.Tensor:
    """The regulariser sum(1 - |2h - 1|^beta), []: 0 where every h is 0 or 1; a large beta only moves those that are nearly there."""
    return (1 - (2 * up - 1).abs().pow(beta)).sum()


def neighbours(x: torch.Tensor, number: Format) -> tuple[torch.Tensor, torch.Tensor]:
    """The grid number that is not above x, shape of x, and the gap to the next, shape of x or [] of 1.

    Args:
        x: float32, within the range of the format.
    """
    if number.is_integer:
        return x.floor(), torch.ones((), device=x.device)
    inside = torch.where(x < 0, torch.nextafter(x, torch.zeros_like(x)), x)  # above -2^e gaps are smaller than below it
    gap = number.step(inside)
    return (x / gap).floor() * gap, gap
