"""Figures of quality: their definitions, their bounds, and that they see what changed."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dexport.errors import Failure, UserError
from dexport.exporter.quality import (
    IDENTICAL_DB,
    Quality,
    ScoreChange,
    Spread,
    latent_cosine,
    latent_snr,
    measure,
    picture_psnr,
    picture_ssim,
    psnr,
    quality_from_json,
    quality_of,
    quality_to_json,
    score_change,
    ssim,
)

Array = np.ndarray[Any, Any]


def _picture(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).integers(0, 256, shape or (16, 24, 3)).astype(np.uint8)


def test_equal_pictures_have_100_db() -> None:
    picture = _picture(0)
    assert psnr(picture, picture) == IDENTICAL_DB == 100.0
    assert ssim(picture, picture) == 1.0


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 255))
def test_psnr_of_a_constant_shift_is_its_formula(shift: int) -> None:
    black = np.zeros((8, 8, 3), np.uint8)
    expected = 20 * math.log10(255 / shift)
    assert psnr(black, black + np.uint8(shift)) == pytest.approx(expected, abs=1e-9)


def test_psnr_pools_the_frames_of_a_video_and_ssim_averages_them() -> None:
    first, second = _picture(1), _picture(2)
    video, other = np.stack([first, first]), np.stack([first, second])
    assert psnr(video, other) == pytest.approx(psnr(first, second) + 10 * math.log10(2))
    assert ssim(video, other) == pytest.approx((1 + ssim(first, second)) / 2)


def test_ssim_is_the_mean_over_windows_of_its_formula() -> None:
    """The formula of the paper on the only full window of a 7 x 7 picture, one channel at a time."""
    a, b = _picture(3, 7, 7, 3), _picture(4, 7, 7, 3)
    values = []
    for channel in range(3):
        x, y = a[..., channel].astype(float).ravel(), b[..., channel].astype(float).ravel()
        covariance = np.cov(x, y)
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        numerator = (2 * x.mean() * y.mean() + c1) * (2 * covariance[0, 1] + c2)
        values.append(numerator / ((x.mean() ** 2 + y.mean() ** 2 + c1) * (covariance[0, 0] + covariance[1, 1] + c2)))
    assert ssim(a, b) == pytest.approx(np.mean(values))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(1e-4, 10))
def test_latent_figures_are_their_formulas(seed: int, size: float) -> None:
    random = np.random.default_rng(seed)
    reference = random.standard_normal((3, 2, 4, 5, 5)).astype(np.float32)
    candidate = (reference + size * random.standard_normal(reference.shape)).astype(np.float32)
    cosine, snr = latent_cosine(reference, candidate), latent_snr(reference, candidate)
    assert cosine.shape == snr.shape == (3, 2)
    a, b = (values[1, 1].astype(np.float64).ravel() for values in (reference, candidate))
    assert cosine[1, 1] == pytest.approx(a @ b / math.sqrt((a @ a) * (b @ b)), abs=1e-12)
    assert snr[1, 1] == pytest.approx(10 * math.log10((a @ a) / ((a - b) @ (a - b))), abs=1e-9)


def test_latent_figures_of_zeros_and_of_equals() -> None:
    zero, one = np.zeros((1, 1, 4), np.float32), np.ones((1, 1, 4), np.float32)
    assert latent_cosine(zero, zero) == latent_cosine(one, one) == latent_cosine(one, 3 * one) == 1
    assert latent_cosine(zero, one) == latent_cosine(one, zero) == 0
    assert latent_snr(one, one) == latent_snr(zero, zero) == IDENTICAL_DB
    assert latent_snr(zero, one) == -IDENTICAL_DB


def test_nan_in_latents_is_a_failure_that_names_side_and_step() -> None:
    good = np.ones((3, 2, 4), np.float32)
    bad = good.copy()
    bad[1, 0, 0] = np.nan
    with pytest.raises(Failure, match="candidate, step 1: expected finite latents"):
        latent_snr(good, bad)
    with pytest.raises(Failure, match="reference, step 1"):
        latent_cosine(bad, good)


def test_measure_takes_medians_and_tenth_percentiles() -> None:
    reference = np.stack([_picture(seed) for seed in range(5)])
    candidate = reference.copy()
    candidate[3] //= 2
    candidate[4] = 255 - candidate[4]
    latents = np.random.default_rng(0).standard_normal((2, 5, 4)).astype(np.float32)
    quality = measure(reference, candidate, (latents, 2 * latents))
    assert quality.pictures == 5 and quality.score is None
    assert quality.psnr.median == IDENTICAL_DB and quality.psnr.p10 < psnr(reference[3], candidate[3])
    assert quality.ssim.median == 1 and quality.ssim.p10 == pytest.approx(np.percentile(picture_ssim(reference, candidate), 10))
    assert quality.latent_cosine == pytest.approx((1, 1)) and quality.latent_snr == pytest.approx((0, 0), abs=1e-6)


def test_quality_of_known_figures_is_that_of_the_pictures() -> None:
    reference = np.stack([_picture(seed) for seed in range(3)])
    candidate = reference // np.array([1, 2, 4], np.uint8)[:, None, None, None]
    figures = picture_psnr(reference, candidate).tolist(), picture_ssim(reference, candidate).tolist()
    assert quality_of(*figures) == measure(reference, candidate)


def test_runs_of_different_shapes_are_refused() -> None:
    small, large = np.zeros((1, 8, 8, 3), np.uint8), np.zeros((1, 8, 16, 3), np.uint8)
    with pytest.raises(UserError, match=r"\[1, 8, 8, 3\] and \[1, 8, 16, 3\]"):
        picture_psnr(small, large)
    with pytest.raises(UserError, match="got float32"):
        picture_psnr(small.astype(np.float32), small)
    with pytest.raises(UserError, match="at least 7 pixels"):
        picture_ssim(small[:, :4], small[:, :4])
    with pytest.raises(UserError, match="the same steps"):
        latent_snr(np.zeros((2, 1, 4)), np.zeros((3, 1, 4)))


def test_the_interval_of_a_score_is_paired() -> None:
    """Scores that vary a lot between prompts and change by exactly 0.1 each: an unpaired interval would be wide."""
    reference = np.random.default_rng(0).random(64)
    change = score_change(reference, reference - 0.1)
    assert (change.change, change.low, change.high) == pytest.approx((-0.1, -0.1, -0.1)) and change.pictures == 64


@pytest.mark.parametrize("seed", range(3))
def test_the_interval_is_that_of_the_normal_approximation_for_many_pairs(seed: int) -> None:
    random = np.random.default_rng(seed)
    reference, noise = random.random(400), 0.2 * random.standard_normal(400)
    change = score_change(reference, reference + noise)
    half = 1.96 * noise.std() / math.sqrt(400)
    assert change.change == pytest.approx(noise.mean())
    assert change.low == pytest.approx(noise.mean() - half, abs=0.1 * half)
    assert change.high == pytest.approx(noise.mean() + half, abs=0.1 * half)


def test_scores_come_in_pairs() -> None:
    with pytest.raises(UserError, match="3 and 2"):
        score_change(np.zeros(3), np.zeros(2))
    with pytest.raises(UserError, match="0 and 0"):
        score_change(np.zeros(0), np.zeros(0))


def _quality() -> Quality:
    return Quality(4, Spread(40.0, 35.5), Spread(0.99, 0.95), (1.0, 0.999), (50.0, 30.0), ScoreChange(0.9, 0.89, -0.01, -0.03, 0.01, 32))


def test_quality_survives_json() -> None:
    for quality in (_quality(), dataclasses.replace(_quality(), score=None, latent_cosine=(), latent_snr=())):
        assert quality_from_json(json.loads(json.dumps(quality_to_json(quality))), "x") == quality


@pytest.mark.parametrize("change", [{"psnr": 3}, {"psnr": {"median": 1}}, {"extra": 1}, {"pictures": "many"}, {"latent_snr": None}])
def test_other_json_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"q\.json: expected quality as"):
        quality_from_json({**quality_to_json(_quality()), **change}, "q.json")
    without = quality_to_json(_quality())
    del without["ssim"]
    with pytest.raises(UserError, match="KeyError: 'ssim'"):
        quality_from_json(without, "q.json")
