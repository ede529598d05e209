"""NVIDIA's ModelOpt (package nvidia-modelopt): its published configurations on the linears of the loop, simulated in PyTorch.

Its compiled kernels are left out on GPUs: building them takes longer than all pictures, and its Python arithmetic rounds the same.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from quality_data import SIDE_BITS, Example, Quantized, calibrate, denoiser_copy, loop_linears, torch_denoiser

CONFIGURATIONS = {
    "INT8_DEFAULT_CFG": ("int8 channel", "int8 tensor"),
    "INT8_SMOOTHQUANT_CFG": ("int8 channel", "int8 tensor"),
    "FP8_DEFAULT_CFG": ("e4m3 tensor", "e4m3 tensor"),
    "INT4_AWQ_CFG": ("int4 block 128", "none"),
    "W4A8_AWQ_BETA_CFG": ("int4 block 128", "e4m3 tensor"),
}
"""Name in modelopt.torch.quantization -> weights, activations. The last two search their scales by output error (AWQ, arXiv 2306.00978)."""


def modelopt(example: Example, batch: int, configuration: str) -> Quantized:
    """A configuration of ModelOpt as published, except that only the loop's linears are quantized."""
    import modelopt.torch.quantization as mtq
    from modelopt.torch.quantization import extensions

    for build in (extensions.get_cuda_ext, extensions.get_cuda_ext_fp8):
        build.extension = None  # "tried, and not available": ModelOpt falls back to PyTorch
    model = denoiser_copy(example)
    mtq.quantize(model, _on_loop_linears(getattr(mtq, configuration), model), lambda m: calibrate(example, torch_denoiser(m), batch))
    weights, activations = CONFIGURATIONS[configuration]
    linears = loop_linears(model)
    stored = sum(_stored_bits(linear) for linear in linears.values())
    bits = stored / sum(linear.weight.numel() for linear in linears.values())
    return Quantized(f"modelopt {configuration.removesuffix('_CFG')}", weights, activations, bits, torch_denoiser(model))


def _on_loop_linears(configuration: dict[str, Any], model: torch.nn.Module) -> dict[str, Any]:
    """The configuration with its rules for weights and inputs narrowed to the loop's linears."""
    narrowed = copy.deepcopy(configuration)
    kinds = ("*weight_quantizer", "*input_quantizer")
    rules = [rule for rule in narrowed["quant_cfg"] if rule["quantizer_name"] in kinds]
    narrowed["quant_cfg"] = [{"quantizer_name": "*", "enable": False}]
    for name in loop_linears(model):
        narrowed["quant_cfg"] += [rule | {"quantizer_name": f"{name}.{rule['quantizer_name'][1:]}"} for rule in rules]
    return narrowed


def _stored_bits(linear: Any) -> float:
    """Codes, scales and the vector that multiplies the input."""
    quantizer, numbers = linear.weight_quantizer, 0
    stages = list(quantizer) if isinstance(quantizer, torch.nn.Sequential) else [quantizer]
    numbers = sum(stage.amax.numel() for stage in stages)
    if linear.input_quantizer.pre_quant_scale is not None:
        numbers += linear.input_quantizer.pre_quant_scale.numel()
    code = stages[0].num_bits
    return linear.weight.numel() * (code if isinstance(code, int) else 1 + sum(code)) + SIDE_BITS * numbers
