"""How activations are quantized: the part of the meaning that quantized linears and convolutions share.

Modes:
    none             activations stay as they are
    static           constant scale
    table            a scale per sampling step, computed outside the loop; the same meaning as static
    dynamic          a scale per row of the last axis (or per block of it), from the row itself
    dynamic-centred  as dynamic, after subtracting the middle of each row's range
"""

from __future__ import annotations

import torch

from dexport.plugins.formats import Format, fake_quantize

MODES = ("none", "static", "table", "dynamic", "dynamic-centred")
_SMALLEST = 1e-8
"""Of a dynamic range: a row of zeros must not divide by zero."""


def row_range(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Smallest and largest value of every row of the last axis, [..., 1]."""
    return x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)


def dynamic_scale(x: torch.Tensor, number: Format) -> torch.Tensor:
    """absmax / largest of every row of the last axis, [..., 1]."""
    scale = x.abs().amax(-1, keepdim=True) / number.largest
    return scale.clamp_min(max(_SMALLEST / number.largest, _least(x.dtype)))


def quantize_rows(x: torch.Tensor, number: Format, block: int) -> torch.Tensor:
    """x with a scale per row, or per block of `block` neighbours in a row if `block` is not 0. Differentiable."""
    if not block:
        return fake_quantize(x, dynamic_scale(x, number), number)
    blocks = torch.unflatten(x, -1, (-1, block))
    return fake_quantize(blocks, dynamic_scale(blocks, number), number).flatten(-2)


def quantize_micro_blocks(x: torch.Tensor, number: Format, block: int, scale: torch.Tensor | None) -> torch.Tensor:
    """x in a format with two levels of scales (NVFP4, MXFP4); differentiable in x.

    With `scale` (NVFP4) a block's scale is absmax / largest / scale rounded to e4m3, times `scale`. Without it (MXFP4, OCP MX 1.0,
    section 6.3) it is the power of two 2^(floor(log2 absmax) - exponent of the largest number).
    """
    blocks = torch.unflatten(x, -1, (-1, block))
    return fake_quantize(blocks, micro_scale(blocks.detach(), number, scale), number).flatten(-2)


def micro_scale(blocks: torch.Tensor, number: Format, scale: torch.Tensor | None) -> torch.Tensor:
    """The scales of blocks [..., block] -> [..., 1], as `quantize_micro_blocks` rounds them."""
    absmax = blocks.abs().amax(-1, keepdim=True).float()
    if scale is None:
        power = torch.frexp(absmax.clamp_min(2.0**-126))[1] - 1 - _exponent(number)
        return torch.exp2(power.clamp(-127, 127).float()).clamp_min(_least(blocks.dtype)).to(blocks.dtype)
    coarse = scale.float()
    fine = (absmax / number.largest / coarse).clamp(2.0**-9, 448.0).to(torch.float8_e4m3fn).float()
    return (fine * coarse).clamp_min(_least(blocks.dtype)).to(blocks.dtype)


def _least(dtype: torch.dtype) -> float:
    """The smallest number above zero, which no scale may fall below: fp16 ends at 6e-8."""
    about = torch.finfo(dtype)
    return about.smallest_normal * about.eps


def _exponent(number: Format) -> int:
    return int(torch.frexp(torch.tensor(number.largest))[1]) - 1
