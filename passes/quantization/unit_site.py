"""A quantized site as a function of real weights: what `quantize` writes into a graph, with weights and scales that may be learned.

The order is that of `SiteValues`: bypass, multiply, rotate, split, round, multiply by the weight, add the branch.

Notation: B rows of the batch (pictures), N tokens, I inputs, O outputs, T calibrated steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import fx
from torch.nn import functional

from dexport.passes.graph import Weight
from dexport.passes.quantization.rotation import rotate, rotated_weight
from dexport.passes.quantization.sites import Site
from dexport.passes.quantization.values import ActivationValues, QuantizedPart, SiteValues
from dexport.passes.quantization.weights import QuantizedWeight, dequantize
from dexport.plugins.activations import quantize_micro_blocks, quantize_rows, row_range
from dexport.plugins.formats import fake_quantize, format_of
from dexport.plugins.quantized_conv.reference import picture_scale

Mixed = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(exact, rounded) -> what goes on."""


@dataclass(frozen=True)
class PartValues:
    """What a part computes with: its real weight [O, I, ...], and the scale of its activation as in `ActivationValues`."""

    weight: torch.Tensor
    scale: torch.Tensor | None


@dataclass(frozen=True)
class SiteFunction:
    """One site on its way through a unit.

    Attributes:
        node: its node, which says strides and so on.
        exact: its own weight, for tokens that bypass; None where none do.
        branch: the factors of the low-rank branch, read.
    """

    site: Site
    node: fx.Node
    decided: SiteValues
    exact: torch.Tensor | None
    branch: tuple[torch.Tensor, torch.Tensor] | None

    def __call__(
        self, x: torch.Tensor, bias: torch.Tensor | None, parts: Sequence[PartValues], steps: torch.Tensor, mixed: Mixed
    ) -> torch.Tensor:
        """Its output; differentiable in the input, the weights and the scales.

        Args:
            x: what enters the site, [B, N, I], [B, I] or [B, I, pixels...].
            parts: one per part of the site.
            steps: the step of each row, int64 [B].
            mixed: see `Mixed`.
        """
        if self.site.kind == "conv":
            return self._conv(x, bias, parts, steps, mixed)
        head, bypass = None, self.decided.bypass
        if self.exact is not None:
            head, x = functional.linear(x[:, :bypass], self.exact, bias), x[:, bypass:]
        if (multiplier := self.decided.multiplier) is not None:
            x = x * multiplier.to(x)
        if (signs := self.decided.signs) is not None:
            x = rotate(x, signs.to(x))
        total = torch.zeros((), dtype=x.dtype, device=x.device)
        for number, (part, values) in enumerate(zip(self.decided.parts, parts, strict=True)):
            piece = x if part.channels is None else x[..., torch.tensor(part.channels, device=x.device)]
            total = total + _linear(piece, part.activations, values, bias if number == 0 else None, steps, mixed)
        if self.branch is not None:
            down, up = (factor.to(x) for factor in self.branch)
            total = total + functional.linear(functional.linear(x, down), up)
        return total if head is None else torch.cat([head, total], 1)

    def _conv(
        self, x: torch.Tensor, bias: torch.Tensor | None, parts: Sequence[PartValues], steps: torch.Tensor, mixed: Mixed
    ) -> torch.Tensor:
        total = torch.zeros((), dtype=x.dtype, device=x.device)
        for number, (part, values) in enumerate(zip(self.decided.parts, parts, strict=True)):
            piece = x if part.channels is None else x[:, part.channels[0] : part.channels[-1] + 1]
            if (a := part.activations) is not None and a.mode != "none":
                scale = picture_scale(piece, a.format) if values.scale is None else _of_rows(values.scale, a, piece, steps, axis=1)
                piece = mixed(piece, fake_quantize(piece, scale.to(piece.dtype), format_of(a.format)))
            weight, own_bias = values.weight.to(piece.dtype), bias if number == 0 else None
            total = total + self.node.target(piece, weight, own_bias, *self.node.args[3:], **self.node.kwargs)  # type: ignore[operator]
        return total


def site_function(site: Site, node: fx.Node, decided: SiteValues, own: Weight) -> SiteFunction:
    """The function of a site; `own` is its weight in the checkpoint."""
    exact = own.load() if decided.bypass else None
    branch = None if decided.branch is None else (decided.branch[0].load(), decided.branch[1].load())
    return SiteFunction(site, node, decided, exact, branch)


def real_weights(own: Weight, decided: SiteValues) -> list[torch.Tensor]:
    """What the codes of every part stand for before rounding: the weight divided, rotated, less its branch, split; float32."""
    weight = own.load().float()
    if decided.multiplier is not None:
        weight = weight / decided.multiplier.float().cpu()
    if decided.signs is not None:
        weight = rotated_weight(weight, decided.signs.float().cpu())
    if decided.branch is not None:
        down, up = (factor.load().float() for factor in decided.branch)
        weight = weight - up @ down
    return [weight if p.channels is None else weight.index_select(1, torch.tensor(p.channels)) for p in decided.parts]


def quantized_weight(part: QuantizedPart) -> QuantizedWeight:
    """The codes and scales of a part, read."""
    return QuantizedWeight(part.codes.load(), part.scale.load(), None if part.coarse is None else part.coarse.load(), part.format)


def decided_values(decided: SiteValues) -> list[PartValues]:
    """The parts as they are decided."""
    return [PartValues(dequantize(quantized_weight(p)), None if p.activations is None else p.activations.scale) for p in decided.parts]


def _linear(
    x: torch.Tensor, a: ActivationValues | None, values: PartValues, bias: torch.Tensor | None, steps: torch.Tensor, mixed: Mixed
) -> torch.Tensor:
    """The meaning of `dexport::quantized_linear` with a real weight."""
    weight = values.weight.to(x.dtype)
    if a is None or a.mode == "none":
        return functional.linear(x, weight, bias)
    centre = None if a.centre is None else _of_rows(a.centre, a, x, steps, axis=-1).to(x.dtype)
    if a.mode == "dynamic-centred":
        low, high = row_range(x)
        centre = (low + high) / 2
    moved, number = x if centre is None else x - centre, format_of(a.format)
    if a.micro:
        rounded = quantize_micro_blocks(moved, number, a.block, values.scale)
    elif values.scale is None:
        rounded = quantize_rows(moved, number, a.block)
    else:
        rounded = fake_quantize(moved, _of_rows(values.scale, a, x, steps, axis=-2).to(x.dtype), number)
    y = functional.linear(mixed(moved, rounded), weight, bias)
    return y if centre is None else y + functional.linear(centre.expand(*centre.shape[:-1], weight.shape[1]), weight)


def _of_rows(values: torch.Tensor, a: ActivationValues, x: torch.Tensor, steps: torch.Tensor, axis: int) -> torch.Tensor:
    """A scale or centre that broadcasts to x: constants as they are, of a table the entry of each row's step.

    Args:
        axis: of x, that the numbers of one step lie along where there are several.
    """
    if a.mode != "table":
        return values
    chosen = values.to(x.device)[steps.to(x.device)].reshape(len(steps), -1).repeat_interleave(x.shape[0] // len(steps), 0)
    shape = [x.shape[0]] + [1] * (x.dim() - 1)
    shape[axis if chosen.shape[1] > 1 else -1] = chosen.shape[1]
    return chosen.reshape(shape)
