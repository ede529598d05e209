"""Rotary position tables, computed once: sizes are fixed per build, and models would compute them again, in float64, at every call."""

from __future__ import annotations

import torch
from torch import nn


class FixedTables(nn.Module):
    """Stands in for a model's position module and returns tables whatever it is asked."""

    def __init__(self, cosine: torch.Tensor, sine: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("cosine", cosine.contiguous())
        self.register_buffer("sine", sine.contiguous())

    def forward(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(cosine, sine)."""
        return self.cosine, self.sine  # type: ignore[return-value]
