"""How far one run lies from another that started from the same noise: PSNR and SSIM of pictures, cosine and SNR of latents, scores.

Fréchet distances and the like are left out on purpose: they compare two piles of pictures and cannot see that a picture changed.

Array shapes: pictures uint8 [n, H, W, 3], videos uint8 [n, F, H, W, 3], latents [T, n, ...] after each of T steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from skimage.metrics import structural_similarity

from dexport.errors import Failure, UserError

Array = npt.NDArray[Any]

IDENTICAL_DB = 100.0
"""PSNR and SNR of equal arrays, which have none; also their upper bound, so that means and plots stay finite."""
RESAMPLES = 10_000
_RESAMPLES_AT_ONCE = 500
_PICTURE_NDIM = 3
_SSIM_WINDOW = 7


@dataclass(frozen=True)
class Spread:
    """The middle and the bad end of one figure over all pictures."""

    median: float
    p10: float


@dataclass(frozen=True)
class ScoreChange:
    """What a scorer says of both runs.

    Attributes:
        reference, candidate: mean scores.
        change: mean of candidate - reference.
        low, high: its 95 % interval by paired bootstrap.
        pictures: how many were scored; may be more than the pictures of the other figures.
    """

    reference: float
    candidate: float
    change: float
    low: float
    high: float
    pictures: int


@dataclass(frozen=True)
class Quality:
    """A candidate against its reference at the same prompts and seeds.

    Attributes:
        pictures: how many were compared.
        psnr: in dB, over all pixels and channels (of all frames).
        ssim: 1 for equal pictures.
        latent_cosine, latent_snr: after every step, the median over pictures; SNR in dB. Empty where latents were not kept.
        score: None where nobody gave a scorer.
    """

    pictures: int
    psnr: Spread
    ssim: Spread
    latent_cosine: tuple[float, ...] = ()
    latent_snr: tuple[float, ...] = ()
    score: ScoreChange | None = None


def measure(
    reference: Array, candidate: Array, latents: tuple[Array, Array] | None = None, scores: tuple[Array, Array] | None = None
) -> Quality:
    """Compares two runs.

    Args:
        reference, candidate: pictures or videos, one pair per prompt and seed.
        latents: of the reference and the candidate.
        scores: float [m] of the reference and the candidate; m need not be n.

    Raises:
        UserError: the runs differ in shape.
        Failure: latents with NaN or infinities.
    """
    return quality_of(picture_psnr(reference, candidate), picture_ssim(reference, candidate), latents, scores)


def quality_of(
    psnrs: Sequence[float] | Array,
    ssims: Sequence[float] | Array,
    latents: tuple[Array, Array] | None = None,
    scores: tuple[Array, Array] | None = None,
) -> Quality:
    """`measure` from the figures of every pair, float [n] each, where they are known already."""
    cosine = snr = np.empty((0, 0))
    if latents is not None:
        cosine, snr = latent_cosine(*latents), latent_snr(*latents)
    return Quality(
        pictures=len(psnrs),
        psnr=_spread(psnrs),
        ssim=_spread(ssims),
        latent_cosine=tuple(float(value) for value in _medians(cosine)),
        latent_snr=tuple(float(value) for value in _medians(snr)),
        score=None if scores is None else score_change(*scores),
    )


def picture_psnr(reference: Array, candidate: Array) -> Array:
    """PSNR of every pair, float64 [n] in dB; raises UserError for different shapes."""
    _check_pictures(reference, candidate)
    return np.array([psnr(a, b) for a, b in zip(reference, candidate)])


def picture_ssim(reference: Array, candidate: Array) -> Array:
    """SSIM of every pair, float64 [n]; raises UserError for different shapes or sides below 7 pixels."""
    _check_pictures(reference, candidate)
    return np.array([ssim(a, b) for a, b in zip(reference, candidate)])


def psnr(reference: Array, candidate: Array) -> float:
    """10 log10(255^2 / mean squared error) in dB of one picture, or of all frames of one video together; at most 100."""
    error = np.mean(np.square(reference.astype(np.float64) - candidate.astype(np.float64)))
    return _decibel(255.0**2, float(error))


def ssim(reference: Array, candidate: Array) -> float:
    """Structural similarity of one picture, or the mean over the frames of one video.

    Wang et al. 2004 (doi 10.1109/TIP.2003.819861) with a uniform window of 7 x 7 pixels, mean over the channels: the
    defaults of scikit-image, so that figures can be compared with what others publish.
    """
    if reference.ndim > _PICTURE_NDIM:
        return float(np.mean([ssim(a, b) for a, b in zip(reference, candidate)]))
    similarity: Any = structural_similarity
    return float(similarity(reference, candidate, channel_axis=2, data_range=255, win_size=_SSIM_WINDOW))


def latent_cosine(reference: Array, candidate: Array) -> Array:
    """Cosine between the latents of every step and picture, float64 [T, n]; 1 where both are 0, 0 where one is."""
    a, b = _flat_latents(reference, candidate)
    product, lengths = np.sum(a * b, axis=2), np.linalg.norm(a, axis=2) * np.linalg.norm(b, axis=2)
    both_zero = ~(a.any(axis=2) | b.any(axis=2))
    return np.where(both_zero, 1.0, np.clip(product / np.where(lengths == 0, 1.0, lengths), -1.0, 1.0))


def latent_snr(reference: Array, candidate: Array) -> Array:
    """10 log10(|reference|^2 / |candidate - reference|^2) of every step and picture, float64 [T, n] in dB, within +-100."""
    a, b = _flat_latents(reference, candidate)
    signal, noise = np.sum(a * a, axis=2), np.sum(np.square(b - a), axis=2)
    result: Array = np.vectorize(_decibel, otypes=[np.float64])(signal, noise)
    return result


def score_change(reference: Array, candidate: Array) -> ScoreChange:
    """Mean change of scores, float [m] each, with its 95 % interval by paired bootstrap (Efron 1979): pairs are drawn, never single scores.

    Raises:
        UserError: not as many scores on both sides, or none.
    """
    if len(reference) != len(candidate) or not len(reference):
        got = f"{len(reference)} and {len(candidate)}"
        raise UserError("scores", expected="one score per picture on both sides", got=got, fix="score the same prompts")
    differences = np.asarray(candidate, np.float64) - np.asarray(reference, np.float64)
    random, count = np.random.default_rng(0), len(differences)
    means = [
        differences[random.integers(count, size=(_RESAMPLES_AT_ONCE, count))].mean(axis=1) for _ in range(RESAMPLES // _RESAMPLES_AT_ONCE)
    ]
    low, high = np.percentile(np.concatenate(means), (2.5, 97.5))
    change = float(differences.mean())
    return ScoreChange(float(np.mean(reference)), float(np.mean(candidate)), change, float(low), float(high), count)


def quality_to_json(quality: Quality) -> dict[str, Any]:
    """Plain JSON, with the names of the fields as keys."""
    document = dataclasses.asdict(quality)
    return document | {name: list(document[name]) for name in ("latent_cosine", "latent_snr")}


def quality_from_json(document: Mapping[str, Any], where: str) -> Quality:
    """Reads what `quality_to_json` wrote.

    Raises:
        UserError: keys are missing or unknown, or values are no numbers.
    """
    try:
        score = document.get("score")
        return Quality(
            **{
                **document,
                "pictures": int(document["pictures"]),
                "psnr": Spread(**_numbers(document["psnr"])),
                "ssim": Spread(**_numbers(document["ssim"])),
                "latent_cosine": tuple(float(value) for value in document["latent_cosine"]),
                "latent_snr": tuple(float(value) for value in document["latent_snr"]),
                "score": None if score is None else ScoreChange(**{**_numbers(score), "pictures": int(score["pictures"])}),
            }
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        got = f"{type(error).__name__}: {error}"
        raise UserError(where, expected="quality as `dexport compare --json` writes it", got=got, fix="measure it again") from error


def _numbers(document: Mapping[str, Any]) -> dict[str, Any]:
    return {name: float(value) for name, value in document.items()}


def _spread(values: Sequence[float] | Array) -> Spread:
    return Spread(float(np.median(values)), float(np.percentile(values, 10)))


def _medians(values: Array) -> Sequence[float]:
    return np.median(values, axis=1).tolist() if values.size else []


def _decibel(signal: float, noise: float) -> float:
    if noise == 0:
        return IDENTICAL_DB
    return float(np.clip(10 * np.log10(signal / noise), -IDENTICAL_DB, IDENTICAL_DB)) if signal else -IDENTICAL_DB


def _check_pictures(reference: Array, candidate: Array) -> None:
    for array in (reference, candidate):
        if array.dtype != np.uint8 or array.ndim not in (_PICTURE_NDIM + 1, _PICTURE_NDIM + 2) or array.shape[-1] != 3 or not len(array):
            expected, got = (
                "uint8 [pictures, height, width, 3] or [pictures, frames, height, width, 3]",
                f"{array.dtype} {list(array.shape)}",
            )
            raise UserError("pictures", expected=expected, got=got, fix="compare pictures as they were made")
    if reference.shape != candidate.shape:
        got = f"{list(reference.shape)} and {list(candidate.shape)}"
        raise UserError("pictures", expected="the same number, size and frames on both sides", got=got, fix="ask both for the same size")
    if min(reference.shape[-3:-1]) < _SSIM_WINDOW:
        got = f"{reference.shape[-3]}x{reference.shape[-2]}"
        raise UserError("pictures", expected=f"sides of at least {_SSIM_WINDOW} pixels", got=got, fix="compare larger pictures")


def _flat_latents(reference: Array, candidate: Array) -> tuple[Array, Array]:
    """Both as float64 [T, n, values]."""
    if reference.shape != candidate.shape:
        got = f"{list(reference.shape)} and {list(candidate.shape)}"
        raise UserError("latents", expected="the same steps and sizes on both sides", got=got, fix="ask both for the same size and steps")
    for name, array in (("reference", reference), ("candidate", candidate)):
        bad = [step for step, values in enumerate(array) if not np.isfinite(values).all()]
        if bad:
            fix = "build with a wider precision, or keep more layers unquantized"
            raise Failure(f"{name}, step {bad[0]}", expected="finite latents", got="NaN or infinities", fix=fix)
    steps, pictures = reference.shape[:2]
    flat = (steps, pictures, -1)
    return reference.reshape(flat).astype(np.float64), candidate.reshape(flat).astype(np.float64)
