"""`dexport::quantized_attention`: scaled dot-product attention whose operands and probabilities are rounded.

    out = R_p(softmax(factor * R(q) R(k)^T + mask)) R(v)

R rounds with one constant scale per tensor; softmax and sums are float32. R_p, by the name of the probabilities' format:

    e4m3     numbers of e4m3 over 448: 1 is the largest number of the grid, which is how compilers that fuse FP8 attention want it
    log2-B   s 2^-c with c = clip(rint(-log2(A / s)), 0, 2^B - 1) and s the largest probability of a picture: known when the prompt is
             (DGQ, arXiv 2501.04304, section 4.2). Rows no longer sum to 1.

Start tokens are the leading keys that DGQ leaves out: a text's first token takes most of the attention whatever the prompt says. Their keys
and their columns of A stay as they are, and s is that of the other columns.

Notation: B pictures, H heads, L queries, S keys, D size of a head.

    query        [B, H, L, D] floating
    key, value   [B, H, S, D]
    mask         added to the scores, or boolean (True: seen); broadcasts to [B, H, L, S]; None
    *_scale      of the rounding of each operand
    factor       of the scores
    causal       query i sees the keys 0 to i
    format       of the operands (plugins/formats.py)
"""

from __future__ import annotations

import re
from typing import Any

import torch

from dexport.plugins.autograd import differentiate_by_reference
from dexport.plugins.formats import fake_quantize, format_of

PROBABILITIES = re.compile(r"e4m3|log2-([1-8])")
"""The names of formats of probabilities."""
PROBABILITY_SCALE = 1 / 448
"""Of probabilities in e4m3."""


def quantized_attention_reference(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    query_scale: float,
    key_scale: float,
    value_scale: float,
    factor: float,
    causal: bool,
    format: str,
    probabilities: str,
    start_tokens: int,
) -> torch.Tensor:
    """The meaning, [B, H, L, D] in the dtype of the query; differentiable in the operands and the mask."""
    number = format_of(format)
    q, k, v = (fake_quantize(x, x.new_tensor(s), number) for x, s in zip((query, key, value), (query_scale, key_scale, value_scale)))
    if start_tokens:
        k = torch.cat([key[..., :start_tokens, :], k[..., start_tokens:, :]], -2)
    scores = factor * (q.float() @ k.float().transpose(-2, -1))
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype is torch.bool else scores + mask
    exact = scores.softmax(-1)
    rounded = quantized_probabilities(exact[..., start_tokens:], probabilities)
    return (torch.cat([exact[..., :start_tokens], rounded], -1) @ v.float()).to(query.dtype)


def quantized_probabilities(exact: torch.Tensor, format: str) -> torch.Tensor:
    """Probabilities [B, H, L, S] in a format that matches `PROBABILITIES`; float32, gradients pass straight through.

    Raises:
        ValueError: another format.
    """
    match = PROBABILITIES.fullmatch(format)
    if match is None:
        raise ValueError(f"'{format}' is no format of probabilities: e4m3 or log2-B with 1 to 8 bits")
    if match[1] is None:
        return fake_quantize(exact, exact.new_tensor(PROBABILITY_SCALE), format_of(format))
    with torch.no_grad():
        largest = exact.flatten(1).amax(1).reshape(-1, *[1] * (exact.dim() - 1)).clamp_min(torch.finfo(exact.dtype).tiny)
        # A probability of 0 has no logarithm: it gets the last code, which is the smallest power.
        codes = torch.log2(largest / exact).round_().clamp_(0, 2 ** int(match[1]) - 1)
        rounded = largest * torch.exp2(-codes)
    return exact + (rounded - exact).detach()


@torch.library.custom_op("dexport::quantized_attention", mutates_args=())
def quantized_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    query_scale: float,
    key_scale: float,
    value_scale: float,
    factor: float,
    causal: bool,
    format: str,
    probabilities: str,
    start_tokens: int,
) -> torch.Tensor:
    """See the module."""
    return quantized_attention_reference(
        query, key, value, mask, query_scale, key_scale, value_scale, factor, causal, format, probabilities, start_tokens
    )


@quantized_attention.register_fake
def _(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any) -> torch.Tensor:
    return query.new_empty((*query.shape[:-1], value.shape[-1]))


differentiate_by_reference("dexport::quantized_attention", quantized_attention_reference)
