"""Number formats below 16 bits: which numbers exist in each, and rounding to them.

A format is a grid of numbers at scale 1. A real tensor is quantized as `scale * round_to_grid(x / scale)`; rounding is to the nearest grid
point, ties to even (without mantissa bits: to the larger magnitude), and saturates at the ends of the grid. There are three kinds:

    int8 int6 int5 int4 int3 int2   two's complement integers; int6 is int8 hardware with the range of 6 bits
    eXmY                            sign, X exponent bits, Y mantissa bits, subnormals, bias 2^(X-1) - 1, no infinity, no NaN
    e4m3 e5m2                       as above with the codes that the 8-bit standard reserves taken away (largest 448 and 57344)

Two identities that recipes use (FP4DiT, arXiv 2503.15465, section 3): e1m2 is a symmetric integer grid of 15 levels, e3m0 are powers of
two.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

import torch

_RESERVED = {"e4m3": (torch.float8_e4m3fn, 448.0), "e5m2": (torch.float8_e5m2, 57344.0)}
_INT = re.compile(r"int([2-8])")
_FLOAT = re.compile(r"e([1-5])m([0-5])")
FORMATS = ("int8", "int6", "int5", "int4", "int3", "int2", "e4m3", "e5m2", "e3m4", "e2m5", "e3m2", "e2m3", "e2m1", "e1m2", "e3m0")
"""The formats that recipes may name; `format_of` reads any intB and eXmY of at most 8 bits."""


@dataclass(frozen=True)
class Format:
    """A grid of numbers.

    Attributes:
        bits: of one code.
        exponent: exponent bits; 0 for integers.
        mantissa: mantissa bits of a float.
        largest: largest number; a scale is usually absmax / largest.
        lowest: smallest number; integers have one more below zero than above.
    """

    name: str
    bits: int
    exponent: int
    mantissa: int
    largest: float
    lowest: float

    @property
    def is_integer(self) -> bool:
        """Whether the grid is evenly spaced."""
        return self.exponent == 0

    @property
    def code_dtype(self) -> torch.dtype:
        """What codes are held in: int8 for integers, PyTorch's own type for e4m3 and e5m2, else uint8 (sign bit, then magnitude)."""
        return torch.int8 if self.is_integer else _RESERVED[self.name][0] if self.name in _RESERVED else torch.uint8

    def round(self, x: torch.Tensor) -> torch.Tensor:
        """x rounded to the grid: nearest, ties to even, saturating. Shape and dtype of x; no gradient (see `fake_quantize`)."""
        clipped = x.clamp(self.lowest, self.largest)
        if self.is_integer:
            return clipped.round_()
        step = self.step(clipped)
        return (clipped / step).round() * step

    def step(self, x: torch.Tensor) -> torch.Tensor:
        """The distance of grid points around each number, shape and dtype of x: 2^(max(floor(log2 |x|), lowest exponent) - mantissa)."""
        if self.is_integer:
            return torch.ones_like(x)
        bias, mantissa_bits = 127, 23  # of float32, whose exponent is read and written as bits: exact, and faster than log2
        lowest = 1 - (2 ** (self.exponent - 1) - 1)
        exponent = (x.float().view(torch.int32) >> mantissa_bits) & 255
        return ((exponent.clamp_(min=lowest + bias) - self.mantissa) << mantissa_bits).view(torch.float32).to(x.dtype)

    def encode(self, grid: torch.Tensor) -> torch.Tensor:
        """Grid numbers -> codes, `code_dtype`."""
        if self.is_integer or self.name in _RESERVED:
            return grid.to(self.code_dtype)
        table = self._magnitudes().to(grid.device)
        index = torch.searchsorted(table, grid.abs().float().contiguous())
        return (index + (grid < 0) * len(table)).to(torch.uint8)

    def decode(self, codes: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Codes -> grid numbers in `dtype`."""
        if self.is_integer or self.name in _RESERVED:
            return codes.to(dtype)
        return self.grid().to(codes.device, dtype)[codes.long()]

    def grid(self) -> torch.Tensor:
        """Every number by its code, float32 [2^bits]; for formats whose codes are uint8."""
        magnitudes = self._magnitudes()
        return torch.cat([magnitudes, -magnitudes])

    def _magnitudes(self) -> torch.Tensor:
        return _magnitudes(self.exponent, self.mantissa)


@cache
def _magnitudes(exponent: int, mantissa: int) -> torch.Tensor:
    """The numbers that are not negative, ascending, float32 [2^(exponent + mantissa)]."""
    bias = 2 ** (exponent - 1) - 1
    numbers = []
    for field in range(2**exponent):
        for fraction in range(2**mantissa):
            lead, power = (0, 1 - bias) if field == 0 else (1, field - bias)
            numbers.append((lead + fraction / 2**mantissa) * 2.0**power)
    return torch.tensor(numbers)


@cache
def format_of(name: str) -> Format:
    """The format of a name such as "int4" or "e2m1".

    Raises:
        ValueError: no such format.
    """
    if match := _INT.fullmatch(name):
        bits = int(match[1])
        half = 2 ** (bits - 1)
        return Format(name, bits, 0, 0, float(half - 1), float(-half))
    if match := _FLOAT.fullmatch(name):
        exponent, mantissa = int(match[1]), int(match[2])
        largest = _RESERVED[name][1] if name in _RESERVED else float(_magnitudes(exponent, mantissa)[-1])
        if exponent + mantissa < 8:
            return Format(name, 1 + exponent + mantissa, exponent, mantissa, largest, -largest)
    raise ValueError(f"'{name}' is no number format; known are {', '.join(FORMATS)}")


def fake_quantize(x: torch.Tensor, scale: torch.Tensor, number: Format) -> torch.Tensor:
    """scale * round(x / scale), differentiable.

    Gradients: rounding passes straight through inside the grid's range and stops outside; the scale gets the gradient of LSQ
    (Esser et al., arXiv 1902.08153, equation 3). Computed in the dtype of x.

    Args:
        x: any shape.
        scale: positive, broadcastable to x.
    """
    if not (torch.is_grad_enabled() and (x.requires_grad or scale.requires_grad)):
        return number.round(x / scale).mul_(scale)
    clipped = (x / scale).clamp(number.lowest, number.largest)
    return (clipped + (number.round(clipped.detach()) - clipped.detach())) * scale
