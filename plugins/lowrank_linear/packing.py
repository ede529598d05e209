"""How `lowrank_linear` holds its weights: two codes of 4 bits in a byte, scales with the outputs side by side."""

from __future__ import annotations

import torch


def packed_codes(codes: torch.Tensor) -> torch.Tensor:
    """Codes [O, I] int8 in -8..7 -> [O, I/2] uint8; input 2i is in the lower half of byte i."""
    nibbles = codes.view(torch.uint8) & 15
    return torch.bitwise_or(nibbles[..., 0::2], nibbles[..., 1::2] << 4)


def unpacked_codes(packed: torch.Tensor) -> torch.Tensor:
    """The inverse of `packed_codes`."""
    both = torch.stack([packed & 15, packed >> 4], -1).flatten(-2).to(torch.int8)
    return torch.where(both > 7, both - 16, both)


def packed_scales(scale: torch.Tensor) -> torch.Tensor:
    """Scales [O, G] of `quantized_linear` -> [G, O]: a group's scales of neighbouring outputs are read together."""
    return scale.t().contiguous()
