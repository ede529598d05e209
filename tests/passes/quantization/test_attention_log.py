"""Logarithmic attention: what is kept, what is rounded, and by how much."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dexport.passes.quantization.attention_log import log_quantized


def _probabilities(seed: int = 0) -> torch.Tensor:
    """[2, 3, 5, 9], most of it on the first key."""
    scores = torch.randn(2, 3, 5, 9, generator=torch.Generator().manual_seed(seed)) * 2
    scores[..., 0] += 6
    return scores.softmax(-1)


def test_by_hand() -> None:
    row = torch.tensor([[0.9, 0.06, 0.03, 0.012, 0.0]])
    assert torch.allclose(log_quantized(row, 4), torch.tensor([[0.9, 0.06, 0.03, 0.015, 0.06 / 2**15]]))
    assert torch.allclose(log_quantized(row, 1), torch.tensor([[0.9, 0.06, 0.03, 0.03, 0.03]]))
    assert torch.allclose(log_quantized(row, 4, 0)[0, :2], torch.tensor([0.9, 0.9 / 16]))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.integers(4, 8))
def test_numbers_are_within_half_an_octave(seed: int, bits: int) -> None:
    exact = _probabilities(seed)
    found = log_quantized(exact, bits)
    assert torch.equal(found[..., 0], exact[..., 0])
    octaves = torch.log2(found[..., 1:] / exact[..., 1:])
    smallest = exact[..., 1:].amax((-2, -1), keepdim=True) * 2.0 ** (1 - 2**bits)
    assert (octaves[exact[..., 1:] >= smallest].abs() <= 0.5 + 1e-4).all()


def test_every_map_has_its_own_largest() -> None:
    exact = _probabilities()
    exact[1] /= 3
    found = log_quantized(exact, 8)
    assert torch.allclose(found[..., 1:].amax((-2, -1)), exact[..., 1:].amax((-2, -1)))
    assert torch.allclose(log_quantized(exact[1:], 8), found[1:])


def test_a_start_token_costs_bits() -> None:
    """With three bits, quantizing the start token along with the others leaves the words fewer codes."""
    exact = _probabilities()
    error = [float((log_quantized(exact, 3, kept) - exact)[..., 1:].square().mean()) for kept in (1, 0)]
    assert error[0] < 0.7 * error[1]


def test_silence_and_half_precision_stay_finite() -> None:
    quiet = torch.zeros(1, 2, 3)
    quiet[..., 0] = 1
    assert torch.equal(log_quantized(quiet, 4), quiet)
    half = _probabilities().half()
    assert log_quantized(half, 8).dtype == torch.float16 and torch.isfinite(log_quantized(half, 8)).all()


def test_says_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="9 bits"):
        log_quantized(_probabilities(), 9)
    with pytest.raises(ValueError, match="fewer than the 9 keys"):
        log_quantized(_probabilities(), 4, 9)
