"""Gradients of dexport's operations: those of their references, which are run again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def differentiate_by_reference(operation: str, reference: Callable[..., torch.Tensor]) -> None:
    """Registers for the custom operation the gradient of `reference`, which takes the same arguments."""

    def setup(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.inputs = inputs

    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        with torch.enable_grad():
            inputs = [_leaf(item) for item in ctx.inputs]
            wanted = [item for item in inputs if _asks(item)]
            found = iter(torch.autograd.grad(reference(*inputs), wanted, gradient, allow_unused=True))
        return tuple(next(found) if _asks(item) else None for item in inputs)

    torch.library.register_autograd(operation, backward, setup_context=setup)


def _leaf(item: Any) -> Any:
    return item.detach().requires_grad_(item.requires_grad) if isinstance(item, torch.Tensor) and item.is_floating_point() else item


def _asks(item: Any) -> bool:
    return isinstance(item, torch.Tensor) and item.requires_grad
