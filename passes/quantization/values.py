"""What is decided for a site: the numbers that its dialect operation will hold.

Notation: O outputs, I inputs, r rank, T calibrated steps, N tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dexport.passes.graph import Weight


@dataclass(frozen=True)
class ActivationValues:
    """How the activation of a site is rounded (see plugins/activations.py).

    Attributes:
        scale: static: [] or [N, 1]; table: [T] or [T, N]; the global scale of NVFP4: []; None in dynamic modes.
        centre: static: [] or [I]; table: [T] or [T, I]; None where there is none.
    """

    format: str
    mode: str
    block: int = 0
    micro: str = ""
    scale: torch.Tensor | None = None
    centre: torch.Tensor | None = None


@dataclass(frozen=True)
class QuantizedPart:
    """One operation: weight codes [O, I, ...] with their scales, and how its input is rounded (None: not at all).

    Attributes:
        label: "int4 block-64", for reports.
        bits: per weight, scales counted.
        channels: which inputs it takes, in this order; None: all. Several parts of one site are summed.
    """

    codes: Weight
    scale: Weight
    coarse: Weight | None
    format: str
    label: str
    bits: float
    activations: ActivationValues | None
    channels: tuple[int, ...] | None = None


@dataclass(frozen=True)
class SiteValues:
    """Everything that is done to one site, in this order: bypass, multiply, rotate, split, quantize, add the branch.

    Attributes:
        parts: their outputs are summed.
        bypass: leading tokens that take the unquantized weight.
        multiplier: [I], before rotation; the codes are those of W / multiplier.
        signs: [I] of +-1, the signs of a Hadamard rotation; None without rotation.
        branch: the low-rank branch: down [r, I] and up [O, r].
    """

    parts: tuple[QuantizedPart, ...]
    bypass: int = 0
    multiplier: torch.Tensor | None = None
    signs: torch.Tensor | None = None
    branch: tuple[Weight, Weight] | None = None
