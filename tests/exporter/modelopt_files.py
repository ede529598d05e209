"""Checkpoints as `modelopt.torch.opt.save` writes them, made by ModelOpt's formulas without ModelOpt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

PLAIN = {"_disabled": False, "_num_bits": 8, "_axis": None, "_block_sizes": None, "_dynamic": False, "_fake_quant": True, "backend": None}
OFF = PLAIN | {"_disabled": True}
_LARGEST = {8: 127.0, 4: 7.0, (4, 3): 448.0}


@dataclass(frozen=True)
class Configuration:
    """One of ModelOpt's.

    Attributes:
        stages: num_bits, axis and block of the weight's quantizers, in order.
        inputs: num_bits of the input's, None for weights alone.
        alpha: of SmoothQuant; None without.
        rank: of SVDQuant; 0 without.
    """

    stages: tuple[tuple[Any, int | None, int], ...] = ((8, 0, 0),)
    inputs: Any = 8
    alpha: float | None = None
    rank: int = 0


INT8 = Configuration()
INT8_TENSOR = Configuration(stages=((8, None, 0),))
SMOOTHQUANT = Configuration(alpha=1.0)
FP8 = Configuration(stages=(((4, 3), None, 0),), inputs=(4, 3))
AWQ = Configuration(stages=((4, None, 8),), inputs=None, alpha=0.5)
W4A8 = Configuration(stages=((4, None, 8), ((4, 3), None, 0)), inputs=(4, 3), alpha=0.5)
SVDQUANT = Configuration(alpha=0.5, rank=3)


@dataclass(frozen=True)
class Quantized:
    """What ModelOpt leaves of a linear; `weight` has the branch taken out and is not rounded."""

    configuration: Configuration
    weight: torch.Tensor
    amaxes: tuple[torch.Tensor, ...]
    input_amax: torch.Tensor
    scale: torch.Tensor | None
    low_rank: tuple[torch.Tensor, torch.Tensor] | None

    def forward(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """What the fake-quantized linear computes."""
        x = x if self.scale is None else x * self.scale
        y = torch.zeros(()) if bias is None else bias
        if self.low_rank is not None:
            y = y + x @ self.low_rank[0].T @ self.low_rank[1].T
        weight = self.weight
        for (bits, _, block), amax in zip(self.configuration.stages, self.amaxes):
            shaped = weight.reshape(weight.shape[0], -1, block) if block else weight
            weight = rounded(shaped, amax[..., None] if block else amax, bits).reshape(weight.shape)
        if self.configuration.inputs is not None:
            x = rounded(x, self.input_amax, self.configuration.inputs)
        return x @ weight.T + y


def rounded(x: torch.Tensor, amax: torch.Tensor, bits: Any) -> torch.Tensor:
    """ModelOpt's fake quantization."""
    largest = _LARGEST[bits]
    scaled = x * (largest / amax)
    codes = scaled.round().clamp(-largest - 1, largest) if isinstance(bits, int) else scaled.to(torch.float8_e4m3fn).float()
    return codes * (amax / largest)


def quantized(weight: torch.Tensor, span: torch.Tensor, configuration: Configuration) -> Quantized:
    """A linear (or a convolution, without smoothing) whose inputs have the largest magnitudes `span` [I]."""
    scale, low_rank = None, None
    if configuration.alpha is not None:
        scale = weight.abs().amax(0) ** (1 - configuration.alpha) / span**configuration.alpha
        weight, span = weight / scale, span * scale
    if configuration.rank:
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
        low_rank = vh[: configuration.rank], u[:, : configuration.rank] * s[: configuration.rank]
        weight = weight - low_rank[1] @ low_rank[0]
    amaxes, at = [], weight
    for bits, axis, block in configuration.stages:
        blocks = at.reshape(at.shape[0], -1, block) if block else at
        amax = blocks.abs().amax(-1) if block else at.abs().amax() if axis is None else at.abs().flatten(1).amax(1, keepdim=True)
        amaxes.append(amax)
        at = rounded(blocks, amax[..., None] if block else amax.reshape(-1, *[1] * (at.dim() - 1)), bits).reshape(at.shape)
    return Quantized(configuration, weight, tuple(amaxes), span.amax(), scale, low_rank)


def save(path: Path, layers: Mapping[str, Quantized]) -> Path:
    """Writes the file."""
    state: dict[str, Any] = {}
    tensors: dict[str, torch.Tensor] = {}
    for name, layer in layers.items():
        stages = layer.configuration.stages
        quantizers = [f"{name}.weight_quantizer{f'.{i}' if len(stages) > 1 else ''}" for i in range(len(stages))]
        if len(stages) > 1:
            state[f"{name}.weight_quantizer"] = {"num_quantizers": len(stages)}
        for key, (bits, axis, block), amax in zip(quantizers, stages, layer.amaxes):
            state[key] = PLAIN | {"_num_bits": bits, "_axis": axis, "_block_sizes": {-1: block, "type": "static"} if block else None}
            tensors[f"{key}._amax"] = amax.reshape(-1, 1) if block else amax
        inputs = layer.configuration.inputs
        state[f"{name}.input_quantizer"] = OFF if inputs is None else PLAIN | {"_num_bits": inputs}
        state[f"{name}.output_quantizer"] = OFF
        tensors |= {f"{name}.weight": layer.weight, f"{name}.input_quantizer._amax": layer.input_amax}
        if layer.scale is not None:
            tensors[f"{name}.input_quantizer._pre_quant_scale"] = layer.scale
        if layer.low_rank is not None:
            last = f"{name}.weight_quantizer"
            tensors |= {f"{last}._svdquant_lora_{end}": factor.contiguous() for end, factor in zip("ab", layer.low_rank)}
    modes = [("quantize", {"config": {}, "metadata": {"quantizer_state": state}})]
    document = {"modelopt_state": {"modelopt_state_dict": modes, "modelopt_version": "0.47.0"}, "model_state_dict": tensors}
    torch.save(document, path)
    return path
