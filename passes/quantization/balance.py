"""Channel balancing: activations are multiplied by m per input channel and weights divided by it, so that neither has outlier channels.

    smoothquant   m = max|W|^(1 - alpha) / max|X|^alpha        SmoothQuant, arXiv 2211.10438, equation 4, where s = 1 / m
    vidit-q       m = max|W|^alpha / max|X|^(1 - alpha)        ViDiT-Q, arXiv 2406.02540, published configurations of the ICLR version
    search        m = max|W|^b / max|X|^a, the best of 39      SVDQuant, arXiv 2411.05007

The two conventions are one formula with opposite exponents: ViDiT-Q's first version wrote SmoothQuant's (W4A8: alpha = 0.11), its last
the other (PixArt: alpha = 0.99, which is SmoothQuant's 0.01). A recipe says which one its number means.

With ranges of the schedule there is one m per range, from the largest magnitudes inside it, hence one set of weights per range. (ViDiT-Q
takes a running mean over calibration batches there; statistics keep the largest magnitude of every step.)

Notation: O outputs, I input channels, R rows, T steps, S ranges of the schedule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from dexport.passes.quantization.recipe import BalanceSpec

QuantizedOutput = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(rows [R, I], weight [O, I]) -> the output [R, O] of the layer with both quantized, and with its low-rank branch where it has one."""

EXPONENTS = ((0.0, 0.0), *((a / 20, 0.0) for a in range(1, 20)), *((a / 20, 1 - a / 20) for a in range(1, 20)))
"""(a, b) of the search: none, activations alone, and both."""
_WIDEST = 2.0**14
"""A multiplier stays within 1 / _WIDEST and _WIDEST, which are numbers in fp16."""


@dataclass(frozen=True)
class BalanceSearch:
    """What the search found.

    Attributes:
        multiplier: float32 [I].
        exponents: (a, b), of EXPONENTS.
        error: mean squared error of the output with it.
        unbalanced: the same without balancing.
    """

    multiplier: torch.Tensor
    exponents: tuple[float, float]
    error: float
    unbalanced: float


def input_span(weight: torch.Tensor) -> torch.Tensor:
    """Largest magnitude of every input channel of a weight [O, I, ...], float32 [I]."""
    return weight.float().abs().transpose(0, 1).flatten(1).amax(1)


def multiplier(absmax: torch.Tensor, weight: torch.Tensor, spec: BalanceSpec) -> torch.Tensor:
    """m of "smoothquant" and "vidit-q", float32 [I].

    Args:
        absmax: largest magnitude of every input channel, [I].
        weight: [O, I, ...]; of sites that share an input, their weights stacked along O.

    Raises:
        ValueError: another method.
    """
    if spec.method == "smoothquant":
        return by_exponents(absmax, input_span(weight), spec.alpha, 1 - spec.alpha)
    if spec.method == "vidit-q":
        return by_exponents(absmax, input_span(weight), 1 - spec.alpha, spec.alpha)
    raise ValueError(f"'{spec.method}' has no formula; expected smoothquant or vidit-q")


def by_exponents(absmax: torch.Tensor, span: torch.Tensor, a: float, b: float) -> torch.Tensor:
    """span^b / absmax^a, float32 [I]; 1 for channels that are zero on either side, where nothing can be balanced.

    Args:
        absmax, span: largest magnitudes of activations and weights, [I].
    """
    live = (absmax > 0) & (span > 0)
    found = span.float().pow(b) / absmax.float().pow(a)
    return torch.where(live, found.clamp(1 / _WIDEST, _WIDEST), 1.0)


def balanced(weight: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    """W / m, [O, I, ...]: the weight for activations x * m."""
    return weight.float() / m.reshape(1, -1, *[1] * (weight.dim() - 2))


def search(absmax: torch.Tensor, weight: torch.Tensor, rows: torch.Tensor, quantized: QuantizedOutput) -> BalanceSearch:
    """The candidate of SVDQuant with the least squared error of the layer's output; the earliest of equals, "none" being the first.

    Args:
        absmax: largest magnitude of every input channel, [I].
        weight: a linear's, [O, I].
        rows: what entered the layer, [R, I].
        quantized: see `QuantizedOutput`; gets balanced rows and weights.

    Raises:
        ValueError: no rows.
    """
    if rows.shape[0] == 0:
        raise ValueError("a search needs rows of activations; there are none")
    rows, weight, span = rows.float(), weight.float(), input_span(weight)
    exact = functional.linear(rows, weight)
    errors, multipliers = [], [by_exponents(absmax, span, a, b) for a, b in EXPONENTS]
    for m in multipliers:
        errors.append(float((quantized(rows * m, balanced(weight, m)) - exact).square().mean(dtype=torch.float64)))
    best = min(range(len(errors)), key=lambda k: errors[k])
    return BalanceSearch(multipliers[best], EXPONENTS[best], errors[best], errors[0])


def range_of_steps(steps: int, ranges: Sequence[float]) -> torch.Tensor:
    """Which range every step belongs to, int64 [T]: the first whose end, as a fraction of the schedule, is not before the step's middle.

    Raises:
        ValueError: the ends do not rise to 1, or a range has no step.
    """
    if list(ranges) != sorted(set(ranges)) or not ranges or ranges[0] <= 0 or ranges[-1] != 1:
        raise ValueError(f"ranges {list(ranges)}: expected fractions that rise and end with 1")
    middles = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    found = torch.searchsorted(torch.tensor(ranges, dtype=torch.float64), middles)
    if len(set(found.tolist())) != len(ranges):
        raise ValueError(f"ranges {list(ranges)}: some have none of the {steps} steps")
    return found


def absmax_of_ranges(absmax: torch.Tensor, ranges: Sequence[float]) -> torch.Tensor:
    """Largest magnitudes [T, I] per range of the schedule, [S, I].

    Raises:
        ValueError: see `range_of_steps`.
    """
    index = range_of_steps(absmax.shape[0], ranges).to(absmax.device)
    return torch.stack([absmax[index == k].amax(0) for k in range(len(ranges))])
