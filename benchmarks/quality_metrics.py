"""The columns of the quality tables: PSNR, SSIM, drift of the latents and detector score against the unquantized model at the same seeds.

PSNR and SSIM are taken over the first 64 pictures, as median and 10th percentile; the score over all of them, with a paired bootstrap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from quality_data import EXAMPLE  # noqa: F401 - puts the example's folder on the path

from dexport.exporter.quality import latent_cosine, picture_psnr, picture_ssim, quality_of

PICTURES = 64


def scores(prompts: Sequence[str], pictures: np.ndarray, mapper: Callable[..., Iterable[float]] = map) -> np.ndarray:
    """The fraction of its prompt's attributes that every picture shows, [n], by the example's detector; `mapper` may be a pool's."""
    import detector

    return np.array(list(mapper(detector.score, prompts, pictures)))


def measured(
    reference: tuple[np.ndarray, np.ndarray], given: tuple[np.ndarray, np.ndarray], marks: tuple[np.ndarray, np.ndarray]
) -> dict[str, Any]:
    """The columns of a table that say how good a denoiser's pictures are.

    Args:
        reference, given: pictures uint8 [n, H, W, 3] and latents [steps, n, ...], of the unquantized model and of the denoiser.
        marks: scores [n] of both.
    """
    first = slice(0, PICTURES)
    decibels = picture_psnr(reference[0][first], given[0][first])
    quality = quality_of(decibels, picture_ssim(reference[0][first], given[0][first]), scores=marks)
    cosine = np.median(latent_cosine(reference[1], given[1]), axis=1)
    assert quality.score is not None
    return {
        "psnr": quality.psnr.median,
        "psnr p10": quality.psnr.p10,
        "ssim": quality.ssim.median,
        "ssim p10": quality.ssim.p10,
        "cosine": float(cosine[-1]),
        "score": quality.score.candidate,
        "score - fp32": quality.score.change,
        "low": quality.score.low,
        "high": quality.score.high,
        "cosine at steps 5, 10, 15": " ".join(f"{c:.4f}" for c in cosine[4:-1:5]),
        "psnr of every picture": [round(float(value), 2) for value in decibels],
    }
