"""`dexport::quantized_linear`: its meaning in PyTorch.

    y = Q(x - c) W^T + c W^T + bias        W = decode(weight) * weight_scale (* weight_global)

Q rounds to `activation_format` with the scale that `activation_mode` says (plugins/activations.py); c is the centre (0 where there is
none), so that an asymmetric range costs one vector: c W^T. Everything else that a recipe does to a linear stands around the operation
as plain ATen: channel balancing is a product, a rotation a matmul, a low-rank branch two linears and a sum, a token bypass or a concat
split slices.

Notation: B... any leading axes, N tokens, I inputs, O outputs, g size of a weight block.

    x                [B..., N, I] floating
    weight           [O, I] codes: int8, float8 or uint8 (plugins/formats.py)
    weight_scale     [1, 1] per tensor, [O, 1] per output channel, [O, I/g] per block; floating, or float8 in the two-level formats
    weight_global    [] or None: second level of NVFP4 scales
    bias             [O] or None
    activation_scale broadcasts to x; [] for a whole tensor, [N, 1] for token groups; None in dynamic modes. Global scale of NVFP4.
    centre           [] or [I] or None
    activation_block 0: a scale per row; otherwise per block of so many inputs (dynamic modes only)
    micro            "" or "nvfp4" or "mxfp4": the scales of the activation's blocks are rounded themselves
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from dexport.plugins.activations import quantize_micro_blocks, quantize_rows, row_range
from dexport.plugins.autograd import differentiate_by_reference
from dexport.plugins.formats import fake_quantize, format_of


def dequantized(
    weight: torch.Tensor, scale: torch.Tensor, coarse: torch.Tensor | None, number: str, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """The real weight [O, I, ...] of codes and scales, in `dtype`."""
    fine = scale.to(dtype) if coarse is None else scale.to(dtype) * coarse.to(dtype)
    codes = format_of(number).decode(weight, dtype)
    if fine.dim() == 2 and fine.shape[1] > 1:
        return (torch.unflatten(codes, 1, (fine.shape[1], -1)) * fine[..., None]).flatten(1)
    return codes * fine


def quantized_linear_reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    weight_global: torch.Tensor | None,
    bias: torch.Tensor | None,
    activation_scale: torch.Tensor | None,
    centre: torch.Tensor | None,
    weight_format: str,
    activation_format: str,
    activation_mode: str,
    activation_block: int,
    micro: str,
) -> torch.Tensor:
    """The meaning, [B..., N, O] in the dtype of x; differentiable in x, scales, centre and bias."""
    real = dequantized(weight, weight_scale, weight_global, weight_format, x.dtype)
    if activation_mode == "none":
        return functional.linear(x, real, bias)
    number = format_of(activation_format)
    if activation_mode == "dynamic-centred":
        low, high = row_range(x)
        centre = (low + high) / 2
    moved = x if centre is None else x - centre
    if micro:
        rounded = quantize_micro_blocks(moved, number, activation_block, activation_scale)
    elif activation_scale is None:
        rounded = quantize_rows(moved, number, activation_block)
    else:
        rounded = fake_quantize(moved, activation_scale.to(x.dtype), number)
    y = functional.linear(rounded, real, bias)
    return y if centre is None else y + functional.linear(centre.expand(*centre.shape[:-1], real.shape[1]), real)


@torch.library.custom_op("dexport::quantized_linear", mutates_args=())
def quantized_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    weight_global: torch.Tensor | None,
    bias: torch.Tensor | None,
    activation_scale: torch.Tensor | None,
    centre: torch.Tensor | None,
    weight_format: str,
    activation_format: str,
    activation_mode: str,
    activation_block: int,
    micro: str,
) -> torch.Tensor:
    """See the module."""
    return quantized_linear_reference(
        x,
        weight,
        weight_scale,
        weight_global,
        bias,
        activation_scale,
        centre,
        weight_format,
        activation_format,
        activation_mode,
        activation_block,
        micro,
    )


@quantized_linear.register_fake
def _(x: torch.Tensor, weight: torch.Tensor, *rest: Any) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


differentiate_by_reference("dexport::quantized_linear", quantized_linear_reference)
