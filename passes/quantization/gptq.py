"""GPTQ: codes that make up for each other's rounding (Frantar et al., arXiv 2210.17323, algorithm 1).

Columns are rounded from left to right; what a column loses is taken back by the columns that are still real, as far as the calibrated
inputs allow: with H = rows^T rows + damping and U the upper Cholesky factor of its inverse,

    e = (w_i - q_i) / U_ii        w_j <- w_j - e U_ij    for all j > i

The scales are fixed beforehand (a grid of weights.py), so that every format and granularity works alike. GPTQ never promises to be better
than rounding to nearest: an output channel whose error on the rows grew keeps the nearest codes.

Notation: O outputs, I inputs, R rows.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from dexport.passes.quantization.weights import QuantizedWeight, WeightGrid, encode


def gptq(weight: torch.Tensor, rows: torch.Tensor, grid: WeightGrid, damping: float = 0.01, block: int = 128) -> QuantizedWeight:
    """Codes for a linear's weight.

    Args:
        weight: [O, I], as it is to be rounded: balanced, rotated, without its low-rank branch.
        rows: what enters the quantized product, [R, I]; better with the rounding of activations than without.
        grid: of the weight.
        damping: part of the mean of H's diagonal that is added to it.
        block: columns after which the rest of the weight is brought up to date.

    Raises:
        ValueError: the weight is no matrix, or the rows have another width.
    """
    if weight.dim() != 2 or rows.dim() != 2 or rows.shape[1] != weight.shape[1]:
        raise ValueError(f"expected rows [R, I] for a weight [O, I], got {tuple(rows.shape)} for {tuple(weight.shape)}")
    real, rows = weight.float(), rows.float()
    steps = grid.steps(weight.shape[1]).expand(weight.shape)
    adjusted = _compensated(real, _factor(rows, damping), grid, steps, block)
    nearest = grid.round(real)
    better = _errors(adjusted - real, rows) < _errors(nearest - real, rows)
    return encode(torch.where(better[:, None], adjusted, nearest), grid)


def _factor(rows: torch.Tensor, damping: float) -> torch.Tensor:
    """U, upper triangular, float32 [I, I]. In double precision: H is nearly singular where there are fewer rows than inputs."""
    hessian = rows.T.double() @ rows.double()
    diagonal = hessian.diagonal()
    diagonal += damping * diagonal.mean()
    diagonal[diagonal == 0] = 1  # rows of zeros: nothing depends on the weight
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    factor: torch.Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor.float()


def _compensated(weight: torch.Tensor, factor: torch.Tensor, grid: WeightGrid, steps: torch.Tensor, block: int) -> torch.Tensor:
    """Numbers of the grid, [O, I]."""
    left, number = weight.clone(), grid.number
    for start in range(0, weight.shape[1], block):
        end = min(start + block, weight.shape[1])
        lost = torch.zeros_like(left[:, start:end])
        for i in range(start, end):
            rounded = number.round(left[:, i] / steps[:, i]) * steps[:, i]
            error = (left[:, i] - rounded) / factor[i, i]
            left[:, i + 1 : end] -= error[:, None] * factor[i, i + 1 : end]
            left[:, i] = rounded
            lost[:, i - start] = error
        left[:, end:] -= lost @ factor[start:end, end:]
    return left


def _errors(lost: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Squared error of every output over the rows, [O]."""
    return functional.linear(rows, lost).square().sum(0)
