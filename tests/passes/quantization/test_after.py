"""Statistics after what is done to an activation, against statistics of the activation to which it is done."""

from __future__ import annotations

import dataclasses

import torch

from dexport.passes.quantization.after import after
from dexport.passes.quantization.rotation import random_signs, rotate
from dexport.passes.quantization.statistics import SiteStatistics
from tests.passes.quantization.layers import seen_of

STEPS = torch.randn(3, 8, 16, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 4.0, 0.25])[:, None, None]
M = torch.linspace(0.25, 4, 16)
CHANNELS = (3, 1, 7, 15)


def _agree(found: SiteStatistics, expected: SiteStatistics) -> None:
    for name in ("count", "minimum", "maximum", "mean", "square", "rows", "row_steps", "limit"):
        assert torch.allclose(getattr(found, name).float(), getattr(expected, name).float(), rtol=1e-4, atol=1e-5), name
    # A number on the edge of a bin may fall to either side of it after another order of operations.
    assert int((found.histogram - expected.histogram).abs().sum()) <= 6


def test_nothing_done_is_nothing_changed() -> None:
    seen = seen_of(STEPS)
    assert after(seen) is seen


def test_a_product() -> None:
    found = after(seen_of(STEPS), M)
    _agree(found, seen_of(STEPS * M))
    assert found.token_minimum is None and found.token_maximum is None


def test_a_rotation() -> None:
    """After the product; here every row is in the sample, so that extremes are exact."""
    signs = random_signs(16, 0)
    _agree(after(seen_of(STEPS), M, lambda rows: rotate(rows, signs)), seen_of(rotate(STEPS * M, signs)))


def test_a_choice_of_channels() -> None:
    _agree(after(seen_of(STEPS), M, None, CHANNELS), seen_of((STEPS * M)[..., CHANNELS]))


def test_tokens_that_bypass() -> None:
    """Their extremes are gone: a first token a hundred times as large leaves no trace."""
    large = STEPS.clone()
    large[:, 0] *= 100
    found, expected = after(seen_of(large), bypass=1), seen_of(STEPS[:, 1:])
    assert torch.equal(found.token_minimum, expected.token_minimum) and torch.equal(found.token_maximum, expected.token_maximum)
    assert torch.equal(found.absmax.amax(1), expected.absmax.amax(1)) and torch.equal(found.limit, expected.limit)
    assert torch.equal(seen_of(large).absmax.amax(1) > 4 * found.absmax.amax(1), torch.ones(3, dtype=torch.bool))


def test_a_step_without_rows_takes_those_of_all() -> None:
    seen = seen_of(STEPS)
    kept = seen.row_steps != 1
    signs = random_signs(16, 0)
    found = after(dataclasses.replace(seen, rows=seen.rows[kept], row_steps=seen.row_steps[kept]), None, lambda rows: rotate(rows, signs))
    rotated = rotate(seen.rows[kept], signs)
    assert torch.allclose(found.maximum[1], rotated.amax(0)) and torch.allclose(found.mean[1], rotated.mean(0), atol=1e-6)


def test_zeros_have_a_limit() -> None:
    found = after(seen_of(torch.zeros(1, 2, 4) + 1e-30), torch.ones(4))
    assert float(found.limit) > 0 and int(found.histogram.sum()) == 8
