"""`dexport::lowrank_linear`: its meaning in PyTorch.

    y = epilogue(Q(x) W^T + round(x D^T) U^T + bias)        W = decode(weight) * weight_scale

The linear layer of SVDQuant (Li et al., arXiv 2411.05007, section 4.2): weights and activations in few bits, and a branch of rank R in
16 bits that carries what they cannot. Balancing of channels is part of x. The branch multiplies x itself, not Q(x).

Q is that of `quantized_linear`: quotients are rounded to the dtype of x, then to the nearest integer, ties to even, saturating at -8..7
or -128..127; a dynamic scale is absmax / 7 or absmax / 127, rounded to the dtype of x. From there on all is computed in float32 (float64
if x is), except that x D^T is rounded to the dtype of x, and the result is rounded once, at the end.

    epilogue(z) = z, then gelu(z) with the approximation by tanh if `gelu`, then residual + gate * z if there is a gate

Notation: B... any leading axes, N tokens, I inputs, O outputs, R rank.

    x                 [B..., N, I] floating
    weight            [O, I/2] uint8, two int4 codes in a byte (packing.py)
    weight_scale      [1, O] per output, or [I/64, O] per group of 64 inputs; dtype of x
    down, up          D [R, I] and U [O, R], dtype of x; R may be 0
    bias              [O] or None
    gate, residual    broadcast to y, [O] or [B..., 1, O], and [B..., N, O]; both or none
    activation_scale  None: dynamic. [1]: one for all of x; [I/64], with groups: one for each. A row of a table of steps, chosen outside.
    activation_format "int4" or "int8"
    activation_block  0: one dynamic scale for each token; 64: one for each token and group of 64 inputs
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from dexport.plugins.activations import dynamic_scale
from dexport.plugins.formats import format_of
from dexport.plugins.lowrank_linear.packing import unpacked_codes
from dexport.plugins.lowrank_linear.shapes import check_shapes


def activation_codes(
    x: torch.Tensor, scale: torch.Tensor | None, activation_format: str, activation_block: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Q(x) as integers [B..., N, G, I/G] and scales [B..., N, G, 1] or [G, 1], both in the dtype of x."""
    number = format_of(activation_format)
    groups = torch.unflatten(x, -1, (-1, activation_block or x.shape[-1]))
    held = dynamic_scale(groups, number) if scale is None else scale.to(x.dtype)[:, None]
    return number.round(groups / held), held


def lowrank_linear_reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    down: torch.Tensor,
    up: torch.Tensor,
    bias: torch.Tensor | None,
    gate: torch.Tensor | None,
    residual: torch.Tensor | None,
    activation_scale: torch.Tensor | None,
    activation_format: str,
    activation_block: int,
    gelu: bool,
) -> torch.Tensor:
    """The meaning, [B..., N, O] in the dtype of x.

    Raises:
        ValueError: a tensor of another shape (shapes.py).
    """
    check_shapes(x, weight, weight_scale, down, up, bias, gate, residual, activation_scale, activation_block)
    wide = torch.promote_types(x.dtype, torch.float32)
    codes, scale = activation_codes(x, activation_scale, activation_format, activation_block)
    rounded = (codes.to(wide) * scale.to(wide)).flatten(-2)
    blocks = torch.unflatten(unpacked_codes(weight).to(wide), 1, (weight_scale.shape[0], -1))
    real = (blocks * weight_scale.to(wide).t()[..., None]).flatten(1)
    narrow = functional.linear(x.to(wide), down.to(wide)).to(x.dtype)
    y = functional.linear(rounded, real) + functional.linear(narrow.to(wide), up.to(wide))
    if bias is not None:
        y = y + bias.to(wide)
    if gelu:
        y = functional.gelu(y, approximate="tanh")
    if gate is not None and residual is not None:
        y = residual.to(wide) + gate.to(wide) * y
    return y.to(x.dtype)


@torch.library.custom_op("dexport::lowrank_linear", mutates_args=())
def lowrank_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    down: torch.Tensor,
    up: torch.Tensor,
    bias: torch.Tensor | None,
    gate: torch.Tensor | None,
    residual: torch.Tensor | None,
    activation_scale: torch.Tensor | None,
    activation_format: str,
    activation_block: int,
    gelu: bool,
) -> torch.Tensor:
    """See the module."""
    return lowrank_linear_reference(
        x,
        weight,
        weight_scale,
        down,
        up,
        bias,
        gate,
        residual,
        activation_scale,
        activation_format,
        activation_block,
        gelu,
    )


@lowrank_linear.register_fake
def _(x: torch.Tensor, weight: torch.Tensor, *rest: Any) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))
