"""Low-rank branch: W = up down + residual, where the product stays in 16 bits and the residual is quantized.

SVDQuant, arXiv 2411.05007, section 4.2: the largest directions of a balanced weight hold its outliers; without them the residual has a
smaller range. Because rounding the residual leaves an error that again has large directions, the split is repeated:

    up down <- the best rank-r approximation of W - Q(residual)        residual <- W - up down

for as long as the error falls; the best split so far is what is returned. One iteration is a single SVD of the weight.

The factors are rounded to 16 bits before the residual is taken, so that it makes up for their rounding.

Notation: O outputs, I inputs, r rank, R rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

Rounding = Callable[[torch.Tensor], torch.Tensor]
"""Real numbers -> the real numbers that quantization makes of them, same shape."""

_OVERSAMPLED = 16
_POWER_ITERATIONS = 6
_EXACT_BELOW = 256
"""Matrices with a side up to this long are decomposed exactly: that takes milliseconds."""


@dataclass(frozen=True)
class LowRank:
    """A weight in two parts.

    Attributes:
        down: [r, I], of `dtype`.
        up: [O, r], of `dtype`.
        residual: W - up down, float32 [O, I]; not rounded yet.
        errors: mean squared error after every iteration, the least of which these factors have.
    """

    down: torch.Tensor
    up: torch.Tensor
    residual: torch.Tensor
    errors: tuple[float, ...]


def low_rank_split(
    weight: torch.Tensor,
    rank: int,
    iterations: int,
    quantize: Rounding,
    rows: torch.Tensor | None = None,
    activations: Rounding | None = None,
    dtype: torch.dtype = torch.float16,
) -> LowRank:
    """Splits a weight.

    Args:
        weight: a linear's, [O, I], balanced and rotated as it will be quantized.
        rank: r; at most min(O, I).
        iterations: at most so many; stops at the first that does not improve.
        quantize: of the residual.
        rows: what enters the layer, [R, I]: the error is then that of its output. None: that of the weight.
        activations: how the quantized product sees rows; None: as they are.
        dtype: of the factors.

    Raises:
        ValueError: the weight is no matrix, or the rank or the number of iterations is out of range.
    """
    _check(weight, rank, iterations)
    weight = weight.float()
    error = _error_of_weight if rows is None else _error_of_output(weight, rows.float(), activations)
    best: LowRank | None = None
    rounded, basis, errors = torch.zeros_like(weight), None, []
    for _ in range(iterations):
        up, down, basis = _factors(weight - rounded, rank, basis)
        up, down = up.to(dtype), down.to(dtype)
        branch = up.float() @ down.float()
        residual = weight - branch
        rounded = quantize(residual)
        errors.append(error(residual - rounded, up.float(), down.float(), rounded))
        if best is not None and not errors[-1] < errors[-2]:
            break
        best = LowRank(down, up, residual, ())
    assert best is not None
    return LowRank(best.down, best.up, best.residual, tuple(errors))


def low_rank_split_shared(
    weights: Sequence[torch.Tensor],
    rank: int,
    iterations: int,
    quantize: Rounding,
    rows: torch.Tensor | None = None,
    activations: Rounding | None = None,
    dtype: torch.dtype = torch.float16,
) -> tuple[LowRank, ...]:
    """Splits weights that share an input, [O_1, I], [O_2, I], ...: one `down` (the same tensor) serves all of them.

    `quantize` is applied to each residual by itself; `errors` are those of all outputs together. Everything else is as in `low_rank_split`.

    Raises:
        ValueError: as there, or the weights have different inputs.
    """
    if len({weight.shape[1:] for weight in weights}) != 1:
        raise ValueError(f"weights {[tuple(w.shape) for w in weights]} do not share their inputs")
    sizes = [weight.shape[0] for weight in weights]

    def quantize_each(residual: torch.Tensor) -> torch.Tensor:
        return torch.cat([quantize(part) for part in torch.split(residual, sizes)])

    whole = low_rank_split(torch.cat([w.float() for w in weights]), rank, iterations, quantize_each, rows, activations, dtype)
    return tuple(
        LowRank(whole.down, up, residual, whole.errors)
        for up, residual in zip(torch.split(whole.up, sizes), torch.split(whole.residual, sizes))
    )


def _check(weight: torch.Tensor, rank: int, iterations: int) -> None:
    if weight.dim() != 2:
        raise ValueError(f"only linears have a low-rank branch, not a weight {tuple(weight.shape)}")
    if not 1 <= rank <= min(weight.shape):
        raise ValueError(f"rank {rank}: expected 1 to {min(weight.shape)} for a weight {tuple(weight.shape)}")
    if iterations < 1:
        raise ValueError(f"{iterations} iterations: expected at least 1")


_Error = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], float]


def _error_of_weight(lost: torch.Tensor, up: torch.Tensor, down: torch.Tensor, rounded: torch.Tensor) -> float:
    return float(lost.square().mean(dtype=torch.float64))


def _error_of_output(weight: torch.Tensor, rows: torch.Tensor, activations: Rounding | None) -> _Error:
    exact = functional.linear(rows, weight)
    seen = rows if activations is None else activations(rows)

    def error(lost: torch.Tensor, up: torch.Tensor, down: torch.Tensor, rounded: torch.Tensor) -> float:
        branch = functional.linear(functional.linear(rows, down), up)
        return float((functional.linear(seen, rounded) + branch - exact).square().mean(dtype=torch.float64))

    return error


def _factors(matrix: torch.Tensor, rank: int, basis: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """up [O, r], down [r, I] of the best rank-r approximation, singular values halved between them, and a basis to start the next from."""
    width = min(rank + _OVERSAMPLED, *matrix.shape)
    if min(matrix.shape) <= max(_EXACT_BELOW, width):
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    else:
        q = _leading_outputs(matrix, width, basis)
        u, s, vh = torch.linalg.svd(q.T @ matrix, full_matrices=False)
        u = q @ u
    root = s[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * vh[:rank], vh[:width].T.contiguous()


def _leading_outputs(matrix: torch.Tensor, width: int, basis: torch.Tensor | None) -> torch.Tensor:
    """An orthonormal basis [O, width] of nearly the space of the largest left singular vectors.

    Subspace iteration (Halko et al., arXiv 0909.4061, algorithm 4.4): the spectrum of weights is flat, so that a few powers are needed;
    from the basis of the iteration before, which moved little, fewer are.
    """
    if basis is None:
        generator = torch.Generator().manual_seed(0)
        start = torch.randn(matrix.shape[1], width, generator=generator).to(matrix.device) / math.sqrt(width)
        powers = _POWER_ITERATIONS
    else:
        start, powers = basis, _POWER_ITERATIONS // 3
    q: torch.Tensor = torch.linalg.qr(matrix @ start).Q
    for _ in range(powers):
        q = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ q).Q).Q
    return q
