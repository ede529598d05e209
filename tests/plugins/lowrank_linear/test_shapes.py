"""Tensors of other shapes never reach a kernel, nor does the meaning broadcast them into something else."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from dexport.plugins.lowrank_linear.launcher import request
from dexport.plugins.lowrank_linear.reference import lowrank_linear
from dexport.plugins.lowrank_linear.shapes import check_shapes

BATCH, TOKENS, INPUTS, OUTPUTS, RANK = 2, 3, 192, 24, 16


def _case(**changes: Any) -> dict[str, Any]:
    def zeros(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.float16)

    plain = {
        "x": zeros(BATCH, TOKENS, INPUTS),
        "weight": zeros(OUTPUTS, INPUTS // 2).to(torch.uint8),
        "weight_scale": zeros(3, OUTPUTS),
        "down": zeros(RANK, INPUTS),
        "up": zeros(OUTPUTS, RANK),
        "bias": zeros(OUTPUTS),
        "gate": zeros(BATCH, 1, OUTPUTS),
        "residual": zeros(BATCH, TOKENS, OUTPUTS),
        "activation_scale": zeros(3) + 1,
        "activation_block": 64,
    }
    return plain | {name: zeros(*shape) if isinstance(shape, tuple) else shape for name, shape in changes.items()}


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "one scale for groups": ({"activation_scale": (1,)}, "activation_scale has to be [3], not [1]"),
    "scales of another layer": ({"activation_scale": (4,)}, "activation_scale has to be [3], not [4]"),
    "groups for one scale": ({"activation_block": 0}, "activation_scale has to be [1], not [3]"),
    "scales of tokens": ({"activation_scale": (3, 1)}, "activation_scale has to be [3], not [3, 1]"),
    "groups of weights": ({"weight_scale": (2, OUTPUTS)}, "weight_scale has to be [1, 24] or [3, 24], not [2, 24]"),
    "scales of other outputs": ({"weight_scale": (3, 1)}, "weight_scale has to be [1, 24] or [3, 24], not [3, 1]"),
    "scales that were not packed": ({"weight_scale": (OUTPUTS, 3)}, "weight_scale has to be [1, 24] or [3, 24], not [24, 3]"),
    "codes that were not packed": ({"weight": (OUTPUTS, INPUTS)}, "weight has to be [24, 96], not [24, 192]"),
    "down": ({"down": (RANK, 64)}, "down has to be [16, 192], not [16, 64]"),
    "up": ({"up": (RANK, OUTPUTS)}, "up has to be [24, 16], not [16, 24]"),
    "bias": ({"bias": (1,)}, "bias has to be [24], not [1]"),
    "a gate of tokens": ({"gate": (BATCH, TOKENS, OUTPUTS)}, "gate has to be [24] or [2, 1, 24], not [2, 3, 24]"),
    "residual": ({"residual": (TOKENS, OUTPUTS)}, "residual has to be [2, 3, 24], not [3, 24]"),
    "half a gate": ({"residual": None}, "a gate needs a residual, and a residual a gate"),
    "a block of another size": ({"activation_block": 32}, "activation_block has to be 0 or 64, not 32"),
    "inputs that are no groups": ({"x": (BATCH, TOKENS, 200)}, "x has 200 inputs: groups need a multiple of 64"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_shapes_are_refused(name: str) -> None:
    """By the check, and by all that would go on with them: the operation and the binding of the kernels."""
    changes, message = WRONG[name]
    case = _case(**changes)
    case["weight"] = case["weight"].to(torch.uint8)
    rest = {"activation_format": "int8", "gelu": False}
    y = torch.zeros(BATCH, TOKENS, OUTPUTS, dtype=torch.float16)
    for refuse in (lambda: check_shapes(**case), lambda: lowrank_linear(**case, **rest), lambda: request(**case, **rest, y=y)):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            refuse()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"weight_scale": (1, OUTPUTS), "gate": (OUTPUTS,), "bias": None},
        {"activation_scale": (1,), "activation_block": 0},
        {"activation_scale": None, "gate": None, "residual": None},
        {"down": (0, INPUTS), "up": (OUTPUTS, 0)},
    ],
)
def test_all_shapes_of_the_docstring_pass(changes: dict[str, Any]) -> None:
    check_shapes(**_case(**changes))
    assert lowrank_linear(**_case(**changes), activation_format="int8", gelu=False).shape == (BATCH, TOKENS, OUTPUTS)


def test_the_result_of_the_kernels_has_its_shape_too() -> None:
    with pytest.raises(ValueError, match=re.escape("y has to be [2, 3, 24], not [6, 20]")):
        request(**_case(), activation_format="int8", gelu=False, y=torch.zeros(6, 20, dtype=torch.float16))
