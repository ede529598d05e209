"""Balancing folded into adaptive layer norm (adaLN), where it follows one:

    (n * scale + shift) * m  =  n * (scale * m) + shift * m

Scale and shift are a row per picture, so two products of a row take the place of one of every token. Sites that read the modulated value
must all be balanced alike; another reader needs it as it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from dexport.passes.graph import value

aten = torch.ops.aten


@dataclass(frozen=True)
class Modulation:
    """normal * scale + shift: [B, T, C] with rows [B, 1, C], or anything that broadcasts like them."""

    normal: fx.Node
    scale: fx.Node
    shift: fx.Node


def modulation(x: fx.Node) -> Modulation | None:
    """How a value was modulated; None if it was not, or if something else reads what is in between."""
    found = _with_row(x, aten.add.Tensor)
    if found is None:
        return None
    product, shift = found
    found = _with_row(product, aten.mul.Tensor) if len(product.users) == 1 else None
    return None if found is None else Modulation(*found, shift)


def _with_row(node: fx.Node, operation: Any) -> tuple[fx.Node, fx.Node] | None:
    """The operands of a sum or product of tokens and a row, the row second."""
    if node.target is not operation or node.kwargs or not all(isinstance(a, fx.Node) for a in node.args):
        return None
    first, second = (a for a in node.args if isinstance(a, fx.Node))
    for tokens, row in ((first, second), (second, first)):
        if _is_row(row) and not _is_row(tokens) and value(tokens).shape == value(node).shape:
            return tokens, row
    return None


def _is_row(node: fx.Node) -> bool:
    shape = value(node).shape
    return len(shape) == 1 or (len(shape) > 2 and all(size == 1 for size in shape[1:-1]))
