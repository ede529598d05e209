"""The quantizer that everybody writes first: one asymmetric min-max range per tensor, weights and activations, static."""

from __future__ import annotations

import torch
from quality_data import Example, Quantized, average_bits, calibrate, denoiser_copy, loop_linears, torch_denoiser


def naive(example: Example, batch: int, weight_bits: int) -> Quantized:
    """Weights of `weight_bits`, activations of 8 bits; ranges of activations over the whole calibration run."""
    model = denoiser_copy(example)
    linears = loop_linears(model)
    ranges: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    handles = [linear.register_forward_pre_hook(_observer(name, ranges)) for name, linear in linears.items()]
    calibrate(example, torch_denoiser(model), batch)
    for handle in handles:
        handle.remove()
    for name, linear in linears.items():
        linear.weight.copy_(rounded(linear.weight, *torch.aminmax(linear.weight), weight_bits))
        linear.register_forward_pre_hook(_rounder(*ranges[name]))
    bits = average_bits(linears, weight_bits, lambda name, linear: 2)  # a scale and a zero point
    return Quantized(f"naive min-max W{weight_bits}A8", f"int{weight_bits} tensor", "int8 tensor", bits, torch_denoiser(model))


def rounded(x: torch.Tensor, low: torch.Tensor, high: torch.Tensor, bits: int) -> torch.Tensor:
    """x on 2^bits evenly spaced numbers from about `low` to about `high`, 0 among them."""
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = (high - low).clamp_min(1e-8) / (2**bits - 1)
    zero = (-low / scale).round()
    return ((x / scale).round() + zero).clamp(0, 2**bits - 1).sub(zero) * scale


def _observer(name: str, ranges: dict[str, tuple[torch.Tensor, torch.Tensor]]):
    def observe(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        low, high = torch.aminmax(arguments[0])
        before = ranges.get(name, (low, high))
        ranges[name] = (torch.minimum(low, before[0]), torch.maximum(high, before[1]))

    return observe


def _rounder(low: torch.Tensor, high: torch.Tensor):
    return lambda module, arguments: (rounded(arguments[0], low, high, 8), *arguments[1:])
