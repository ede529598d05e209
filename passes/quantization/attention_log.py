"""Logarithmic quantization of attention probabilities, for each prompt by itself (DGQ, arXiv 2501.04304).

    A' = s 2^-q    q = clip(rint(-log2(A / s)), 0, 2^b - 1)    s = the largest probability of an attention map, the start token's apart

The start token of a text takes most of the attention whatever the prompt says. Its column stays as it is, and what is left for the words
has a range that the prompt decides, which is why s is taken from the map itself.

Notation: L queries, S keys.
"""

from __future__ import annotations

import torch


def log_quantized(probabilities: torch.Tensor, bits: int, start_tokens: int = 1) -> torch.Tensor:
    """Attention probabilities, rounded to powers of two times the largest of each map. Not differentiable.

    Args:
        probabilities: [..., L, S], not negative; the axes before the last two are pictures and heads, each with a map of its own.
        bits: of the codes, 1 to 8.
        start_tokens: leading keys whose columns stay as they are.

    Returns:
        Shape and dtype of `probabilities`; rows no longer sum to 1.

    Raises:
        ValueError: bits out of range, or no key is left to quantize.
    """
    if not 1 <= bits <= 8:
        raise ValueError(f"{bits} bits: expected 1 to 8")
    if not 0 <= start_tokens < probabilities.shape[-1]:
        raise ValueError(f"{start_tokens} start tokens: expected fewer than the {probabilities.shape[-1]} keys")
    kept, rest = probabilities[..., :start_tokens], probabilities[..., start_tokens:].float()
    largest = rest.amax((-2, -1), keepdim=True)
    # A probability of 0 has no logarithm: it gets the last code, which is the smallest power.
    codes = torch.log2(largest / rest).round().nan_to_num(posinf=2.0**bits, nan=2.0**bits).clamp(0, 2**bits - 1)
    return torch.cat([kept, (largest * torch.exp2(-codes)).to(kept.dtype)], -1)
