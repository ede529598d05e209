"""How far pictures are from those of the unquantized model at the same seeds: PSNR, SSIM, drift of the latents, detector score.

PSNR and SSIM are taken over the first 64 pictures, as median and 10th percentile; the score over all of them, with a paired bootstrap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from quality_data import EXAMPLE  # noqa: F401 - puts the example's folder on the path

PICTURES, RESAMPLES, MOST_DB = 64, 10_000, 100.0


def psnr(given: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """10 log10(255^2 / mse) of every picture, [n] decibels; identical pictures have 100. Pictures are uint8 [n, H, W, 3]."""
    error = ((given.astype(np.float64) - expected.astype(np.float64)) ** 2).mean(axis=(1, 2, 3))
    return np.minimum(MOST_DB, 10 * np.log10(255.0**2 / np.maximum(error, 1e-12)))


def ssim(given: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Structural similarity of every picture (Wang et al. 2004, a uniform window of 7), [n]; scikit-image's."""
    from skimage.metrics import structural_similarity

    return np.array([structural_similarity(a, b, channel_axis=2, data_range=255) for a, b in zip(given, expected, strict=True)])


def latent_cosine(given: torch.Tensor, expected: torch.Tensor) -> np.ndarray:
    """Cosine of every latent of every step with the unquantized one's: [steps, n, ...] twice -> [steps, n]."""
    return torch.nn.functional.cosine_similarity(given.flatten(2), expected.flatten(2), dim=2).numpy()


def scores(prompts: Sequence[str], pictures: np.ndarray, mapper: Callable[..., Iterable[float]] = map) -> np.ndarray:
    """The fraction of its prompt's attributes that every picture shows, [n], by the example's detector; `mapper` may be a pool's."""
    import detector

    return np.array(list(mapper(detector.score, prompts, pictures)))


def paired_interval(difference: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The bootstrap's 95 % interval of the mean of paired differences [n] (Efron and Tibshirani 1993, percentile method)."""
    draws = np.random.default_rng(seed).integers(len(difference), size=(RESAMPLES, len(difference)))
    low, high = np.percentile(difference[draws].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def measured(
    pictures: np.ndarray, cosine: np.ndarray, score: np.ndarray, reference: np.ndarray, reference_score: np.ndarray
) -> dict[str, Any]:
    """The columns of a table that say how good a denoiser's pictures are.

    Args:
        pictures: uint8 [n, H, W, 3]; reference: those of the unquantized model.
        cosine: [steps, n] of `latent_cosine`.
        score: [n]; reference_score: those of the unquantized model.
    """
    first = slice(0, PICTURES)
    decibels, similarity = psnr(pictures[first], reference[first]), ssim(pictures[first], reference[first])
    low, high = paired_interval(score - reference_score)
    return {
        "psnr": float(np.median(decibels)),
        "psnr p10": float(np.percentile(decibels, 10)),
        "ssim": float(np.median(similarity)),
        "ssim p10": float(np.percentile(similarity, 10)),
        "cosine": float(np.median(cosine[-1])),
        "score": float(score.mean()),
        "score - fp32": float((score - reference_score).mean()),
        "low": low,
        "high": high,
        "cosine at steps 5, 10, 15": " ".join(f"{c:.4f}" for c in np.median(cosine, axis=1)[4:-1:5]),
    }
