"""`dexport::quantized_conv`: its meaning in PyTorch.

    y = conv(Q(x), W) + bias               W = decode(weight) * weight_scale

Q rounds to `activation_format` with a constant scale (static), the scale of the sampling step (table), or one per picture (dynamic).
There is no centre: the zeros of the padding would have to move with it.

Notation: B pictures, I input channels, O output channels, K... the kernel's one to three spatial sizes.

    x                [B, I, S...] floating
    weight           [O, I/groups, K...] codes (plugins/formats.py)
    weight_scale     [1, 1, 1...] per tensor or [O, 1, 1...] per output channel
    bias             [O] or None
    activation_scale broadcasts to x; None in mode "none" and "dynamic"
"""

from __future__ import annotations

import torch

from dexport.plugins.activations import dynamic_scale
from dexport.plugins.autograd import differentiate_by_reference
from dexport.plugins.formats import fake_quantize, format_of

_CONVOLUTIONS = {3: torch.ops.aten.conv1d.default, 4: torch.ops.aten.conv2d.default, 5: torch.ops.aten.conv3d.default}


def quantized_conv_reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None,
    activation_scale: torch.Tensor | None,
    weight_format: str,
    activation_format: str,
    activation_mode: str,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> torch.Tensor:
    """The meaning, in the dtype of x; differentiable in x, scales and bias."""
    real = format_of(weight_format).decode(weight, x.dtype) * weight_scale.to(x.dtype)
    if activation_mode != "none":
        number = format_of(activation_format)
        scale = picture_scale(x, activation_format) if activation_scale is None else activation_scale.to(x.dtype)
        x = fake_quantize(x, scale, number)
    result: torch.Tensor = _CONVOLUTIONS[x.dim()](x, real, bias, stride, padding, dilation, groups)
    return result


def picture_scale(x: torch.Tensor, activation_format: str) -> torch.Tensor:
    """absmax / largest of every picture, [B, 1, 1...]."""
    return dynamic_scale(x.flatten(1), format_of(activation_format)).reshape(-1, *[1] * (x.dim() - 1))


@torch.library.custom_op("dexport::quantized_conv", mutates_args=())
def quantized_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None,
    activation_scale: torch.Tensor | None,
    weight_format: str,
    activation_format: str,
    activation_mode: str,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> torch.Tensor:
    """See the module."""
    return quantized_conv_reference(
        x,
        weight,
        weight_scale,
        bias,
        activation_scale,
        weight_format,
        activation_format,
        activation_mode,
        stride,
        padding,
        dilation,
        groups,
    )


@quantized_conv.register_fake
def _(
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None,
    activation_scale: torch.Tensor | None,
    weight_format: str,
    activation_format: str,
    activation_mode: str,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> torch.Tensor:
    like = weight.new_empty(weight.shape, dtype=x.dtype)
    result: torch.Tensor = _CONVOLUTIONS[x.dim()](x, like, bias, stride, padding, dilation, groups)
    return result


differentiate_by_reference("dexport::quantized_conv", quantized_conv_reference)
