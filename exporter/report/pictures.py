"""Pictures of a report: which pairs to show, difference maps, and everything as data URIs within a budget of bytes."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from dexport.exporter.report.data import Pair

Array = npt.NDArray[Any]

MOST_PAIRS = 8
DIFFERENCE_LEVELS = (4, 8, 16, 32, 64, 128, 255)
DIFFERENCE_COLOURS = ("#05060f", "#1d2f7a", "#8d2f8d", "#f07f3c", "#fff4c8")
"""From no difference to the largest that is told apart, evenly spaced; the page draws its scale from them too."""
_PICTURE_BYTES = 2_000_000  # of all pictures before base64, which adds a third: pages stay below 3 MB
_LARGEST_SIDE, _SMALLEST_SIDE = 768, 64  # of pictures that are reduced
_BEST_RATIO = 12  # a PNG is not tried where it would have to be this many times smaller than its pixels
_SATURATED = 99.5  # percentile of differences that the scale has to reach
_PICTURE_NDIM = 3


@dataclass(frozen=True)
class Shown:
    """A picture as the page embeds it.

    Attributes:
        uri: a data URI: PNG, or WebP where the PNG is too large.
        width, height: of the picture that was compared, in pixels.
        exact: pixel for pixel; else it was reduced for the page.
    """

    uri: str
    width: int
    height: int
    exact: bool


@dataclass(frozen=True)
class ShownPair:
    """A row of the page; `frame` is the frame of a video where the two differ most, else None."""

    pair: Pair
    reference: Shown
    candidate: Shown
    difference: Shown
    frame: int | None


@dataclass(frozen=True)
class Gallery:
    """The pairs of a page, the worst first. `full_scale`: the difference, in levels of 255, that has the last colour."""

    pairs: tuple[ShownPair, ...]
    full_scale: int
    total: int


def gallery(pairs: Sequence[Pair]) -> Gallery:
    """Up to 8 pairs from the worst to the best PSNR, evenly by rank, with their difference maps on one scale."""
    ranked = sorted(pairs, key=lambda pair: pair.psnr)
    shown = min(len(ranked), MOST_PAIRS)
    chosen = [ranked[round(rank * (len(ranked) - 1) / max(shown - 1, 1))] for rank in range(shown)]
    frames = [_frame(pair) for pair in chosen]
    pictures = [_pictures(pair, frame) for pair, frame in zip(chosen, frames)]
    maps = [difference(a, b) for a, b in pictures]
    full_scale = scale_of(maps)
    budget = _PICTURE_BYTES // (3 * max(len(chosen), 1))
    rows = tuple(
        ShownPair(pair, _shown(_rgb(a), budget), _shown(_rgb(b), budget), _shown(_coloured(levels, full_scale), budget), frame)
        for pair, frame, (a, b), levels in zip(chosen, frames, pictures, maps)
    )
    return Gallery(rows, full_scale, len(pairs))


def difference(reference: Array, candidate: Array) -> Array:
    """Largest difference of the three channels, uint8 [H, W]."""
    levels: Array = np.abs(reference.astype(np.int16) - candidate.astype(np.int16)).max(axis=2).astype(np.uint8)
    return levels


def scale_of(maps: Sequence[Array]) -> int:
    """The smallest of `DIFFERENCE_LEVELS` that nearly all differences stay below."""
    worst = max((float(np.percentile(levels, _SATURATED)) for levels in maps), default=0.0)
    return next(level for level in DIFFERENCE_LEVELS if worst <= level)


def _frame(pair: Pair) -> int | None:
    if pair.reference.ndim == _PICTURE_NDIM:
        return None
    return int(np.argmax([np.mean(difference(a, b).astype(np.float64) ** 2) for a, b in zip(pair.reference, pair.candidate)]))


def _pictures(pair: Pair, frame: int | None) -> tuple[Array, Array]:
    return (pair.reference, pair.candidate) if frame is None else (pair.reference[frame], pair.candidate[frame])


def _rgb(picture: Array) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(picture))


def _coloured(levels: Array, full_scale: int) -> Image.Image:
    """A difference map as a palette picture, which takes a third of the bytes of a coloured one."""
    index = np.minimum(levels.astype(np.uint16) * 255 // full_scale, 255).astype(np.uint8)
    picture = Image.fromarray(index, mode="P")
    picture.putpalette(_palette().ravel().tolist())
    return picture


def _palette() -> Array:
    """256 colours between `DIFFERENCE_COLOURS`, uint8 [256, 3]."""
    anchors = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in DIFFERENCE_COLOURS], np.float64)
    at = np.linspace(0, len(anchors) - 1, 256)
    channels = [np.interp(at, np.arange(len(anchors)), anchors[:, channel]) for channel in range(3)]
    colours: Array = np.stack(channels, axis=1).round().astype(np.uint8)
    return colours


def _shown(picture: Image.Image, most_bytes: int) -> Shown:
    """A PNG if it fits; else a WebP, smaller and smaller until it does."""
    width, height = picture.size
    if width * height * len(picture.getbands()) <= _BEST_RATIO * most_bytes:
        data = _encoded(picture, "PNG")
        if len(data) <= most_bytes:
            return Shown(_uri("png", data), width, height, exact=True)
    side = _LARGEST_SIDE
    while True:
        small = picture.convert("RGB")
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
        data = _encoded(small, "WEBP", quality=90, method=2)
        if len(data) <= most_bytes or side == _SMALLEST_SIDE:
            return Shown(_uri("webp", data), width, height, exact=False)
        side = max(_SMALLEST_SIDE, int(0.95 * max(small.size) * math.sqrt(most_bytes / len(data))))


def _encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
