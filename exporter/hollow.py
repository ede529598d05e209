"""Models without weights: the module tree of a configuration with hollow parameters.

A hollow parameter has the right shape and dtype, lives on the CPU and owns one element of storage (all strides are 0), so a model of any
size costs nothing, captures without device mismatches, and its computed buffers (position tables, frequencies) are real.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from accelerate import init_empty_weights
from torch import nn


def hollow_model(construct: Callable[[], nn.Module], dtype: torch.dtype) -> nn.Module:
    """Builds a model in evaluation mode with hollow parameters of `dtype`.

    Modules that the library keeps in fp32 (`_keep_in_fp32_modules`) stay fp32, as `from_pretrained(torch_dtype=...)` does it.
    """
    with torch.no_grad(), init_empty_weights(include_buffers=False):
        model = construct()
    kept = tuple(getattr(model, "_keep_in_fp32_modules", None) or ())
    for path, module in model.named_modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            wide = any(part in f"{path}.{name}".split(".") for part in kept)
            module._parameters[name] = _hollow(parameter.shape, torch.float32 if wide else dtype)
    return model.eval().requires_grad_(False)


def _hollow(shape: torch.Size, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(torch.zeros((), dtype=dtype).expand(shape), requires_grad=False)
