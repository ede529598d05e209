"""Pictures in the page: exact where they fit, within the budget where not, differences on one scale."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dexport.exporter.report.data import pairs_of
from dexport.exporter.report.pictures import DIFFERENCE_COLOURS, Shown, difference, gallery, scale_of
from tests.exporter.report.samples import noisy, pairs, pictures

Array = np.ndarray[Any, Any]


def _decoded(shown: Shown) -> Array:
    picture = Image.open(io.BytesIO(base64.b64decode(shown.uri.partition(",")[2])))
    return np.asarray(picture.convert("RGB"))


def test_small_pictures_are_embedded_pixel_for_pixel() -> None:
    (pair,) = pairs(1, 16, 24)
    row = gallery([pair]).pairs[0]
    assert row.reference.exact and (row.reference.width, row.reference.height) == (24, 16)
    assert row.reference.uri.startswith("data:image/png;base64,")
    assert np.array_equal(_decoded(row.reference), pair.reference) and np.array_equal(_decoded(row.candidate), pair.candidate)
    assert row.frame is None


def test_the_map_shows_differences_from_the_first_colour_to_the_last() -> None:
    reference = np.full((1, 8, 8, 3), 100, np.uint8)
    candidate = reference.copy()
    candidate[0, 0, :, 1] += 16
    candidate[0, 1, :, 2] -= 8
    shown = gallery(pairs_of([""], [0], reference, candidate))
    assert shown.full_scale == 16
    colours = ["#{:02x}{:02x}{:02x}".format(*row[0]) for row in _decoded(shown.pairs[0].difference)]
    first, _, middle, _, last = DIFFERENCE_COLOURS
    assert colours[0] == last and colours[2:] == [first] * 6
    half = [int(middle[i : i + 2], 16) for i in (1, 3, 5)]
    assert _decoded(shown.pairs[0].difference)[1, 0] == pytest.approx(half, abs=3)


def test_the_difference_is_the_largest_of_the_channels() -> None:
    a, b = np.zeros((1, 1, 3), np.uint8), np.array([[[3, 255, 7]]], np.uint8)
    assert difference(a, b).tolist() == difference(b, a).tolist() == [[255]]


def test_scales_are_round_and_shared() -> None:
    assert scale_of([np.zeros((4, 4), np.uint8)]) == 4
    assert scale_of([np.full((4, 4), 5, np.uint8), np.full((4, 4), 33, np.uint8)]) == 64
    assert scale_of([np.full((4, 4), 255, np.uint8)]) == 255
    assert scale_of([]) == 4


def test_eight_pairs_from_the_worst_to_the_best() -> None:
    many = pairs(20, 16, 16)
    shown = gallery(many)
    values = [row.pair.psnr for row in shown.pairs]
    assert (len(values), shown.total) == (8, 20) and values == sorted(values)
    assert values[0] == min(pair.psnr for pair in many) and values[-1] == max(pair.psnr for pair in many)
    assert len(gallery(many[:3]).pairs) == 3


def test_a_video_shows_the_frame_that_differs_most() -> None:
    video = pictures(5, 16, 16)[None]
    changed = video.copy()
    changed[0, 3] = noisy(changed[0, 3], 20)
    row = gallery(pairs_of([""], [0], video, changed)).pairs[0]
    assert row.frame == 3 and np.array_equal(_decoded(row.candidate), changed[0, 3])


def test_noise_of_many_pixels_stays_within_the_budget() -> None:
    """Noise is the worst case for every compression."""
    (pair,) = pairs(1, 640, 800, levels=60)
    shown = gallery([pair] * 8)
    embedded = [picture for row in shown.pairs for picture in (row.reference, row.candidate, row.difference)]
    assert sum(len(picture.uri) for picture in embedded) < 2_800_000
    assert not any(picture.exact for picture in embedded)
    assert all((picture.width, picture.height) == (800, 640) for picture in embedded), "of the picture that was compared"
    assert max(_decoded(shown.pairs[0].reference).shape) <= 768
