"""Channel balancing: activations are multiplied by m per input channel and weights divided by it, so that neither has outlier channels.

    smoothquant   m = max|W|^(1 - alpha) / max|X|^alpha        SmoothQuant, arXiv 2211.10438, equation 4, where s = 1 / m
    vidit-q       m = max|W|^alpha / max|X|^(1 - alpha)        ViDiT-Q, arXiv 2406.02540, published configurations of the ICLR version
    search        m = max|W|^b / max|X|^a, the best of 39      SVDQuant, arXiv 2411.05007

The two conventions are one formula with opposite exponents: ViDiT-Q's first version wrote SmoothQuant's (W4A8: alpha = 0.11), its last
the other (PixArt: alpha = 0.99, which is SmoothQuant's 0.01). A recipe says which one its number means.

ViDiT-Q's first version has one m per range of the schedule, hence a set of weights per range; here the largest magnitudes of all steps give
one m. At the published exponent that is all the same: on the reference pipeline the m of the first and of the second half of the schedule
differ by 0.2 % (median) and by 3 % at most, and twice the weights is more than any device would pay for it. (The paper also takes a running
mean over calibration batches; statistics keep the largest magnitude of every step.)

Notation: O outputs, I input channels, R rows.
"""

from __future__ import annotations

from collections.abc import Callable
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
    real = weight.float()
    others = [axis for axis in range(real.dim()) if axis != 1]
    return torch.maximum(real.amax(others), -real.amin(others))


def multiplier(absmax: torch.Tensor, span: torch.Tensor, spec: BalanceSpec) -> torch.Tensor:
    """m of "smoothquant" and "vidit-q", float32 [I].

    Args:
        absmax, span: largest magnitudes of activations and weights, [I]; for sites that share an input, of all their weights.

    Raises:
        ValueError: another method.
    """
    if spec.method == "smoothquant":
        return by_exponents(absmax, span, spec.alpha, 1 - spec.alpha)
    if spec.method == "vidit-q":
        return by_exponents(absmax, span, 1 - spec.alpha, spec.alpha)
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
