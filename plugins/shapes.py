"""Comparing shapes of tensors with those that an operation has: kernels read as many numbers as these say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch


def require_shapes(allowed: Mapping[str, tuple[torch.Tensor | None, Sequence[tuple[int, ...]]]]) -> None:
    """Each tensor has one of its shapes; None is not there and has none.

    Raises:
        ValueError: the first tensor that has another one.
    """
    for name, (tensor, shapes) in allowed.items():
        if tensor is not None and tuple(tensor.shape) not in shapes:
            wanted = " or ".join(str(list(shape)) for shape in dict.fromkeys(shapes))
            raise ValueError(f"{name} has to be {wanted}, not {list(tensor.shape)}")
