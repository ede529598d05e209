"""Groups of channels and tokens, and tokens that are outliers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dexport.passes.quantization.groups import group, group_scales, outlier_tokens, spread
from dexport.plugins.formats import format_of

INT8 = format_of("int8")


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_spread() -> None:
    assert spread(torch.tensor([-1.0, -3.0]), torch.tensor([2.0, 7.0])) == 5 + 2
    assert spread(torch.tensor([-3.0, -3.0]), torch.tensor([7.0, 7.0])) == 0


def test_planted_groups_are_found() -> None:
    kind = torch.randint(0, 4, (200,), generator=torch.Generator().manual_seed(0))
    low, high = torch.tensor([-1.0, -10, 0, -100])[kind], torch.tensor([1.0, 2, 30, 100])[kind]
    found = group(low - 0.1 * _random(200), high + 0.1 * _random(200, seed=1), 4)
    assert torch.equal(found.ids, torch.tensor([0, 1, 2, 3])[kind])  # numbered by largest magnitude
    assert found.sizes == tuple(torch.bincount(kind).tolist())


def test_an_outlier_has_its_own_group() -> None:
    high = torch.cat([_random(383) + 1, torch.tensor([500.0])])
    assert group(-high, high, 8).sizes[-1] == 1


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 12), st.integers(1, 40))
def test_groups_are_a_partition(seed: int, count: int, size: int) -> None:
    low, high = -_random(size, seed=seed), _random(size, seed=seed + 1)
    found = group(low, high, count)
    assert sum(found.sizes) == size and len(found.sizes) <= min(count, size) and min(found.sizes) > 0
    assert sorted(found.permutation.tolist()) == list(range(size))
    assert torch.equal(found.ids[found.permutation], torch.repeat_interleave(torch.tensor(found.sizes)))
    again = group(low, high, count)
    assert torch.equal(found.ids, again.ids)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000))
def test_every_point_is_nearest_to_its_own_centre(seed: int) -> None:
    points = torch.stack([-_random(50, seed=seed), _random(50, seed=seed + 1)], 1)
    found = group(points[:, 0], points[:, 1], 5)
    centres = torch.stack([points[found.ids == k].mean(0) for k in range(len(found.sizes))])
    distance = torch.cdist(points, centres)
    assert torch.allclose(distance.gather(1, found.ids[:, None])[:, 0], distance.amin(1), atol=1e-6)


def test_equal_points_need_one_group() -> None:
    assert group(-torch.ones(9), torch.ones(9), 4).sizes == (9,)


def test_scales_cover_every_member_at_every_step() -> None:
    low, high = -_random(6, 40, seed=1) * 9, _random(6, 40, seed=2)
    found = group(low.amin(0), high.amax(0), 4)
    scales = group_scales(low, high, found, INT8)
    assert scales.shape == (6, 4)
    assert (scales[:, found.ids] * 127 >= torch.maximum(high, -low) * 0.999999).all()
    assert float(scales[2, 1]) == pytest.approx(float(torch.maximum(high, -low)[2, found.ids == 1].amax()) / 127)
    assert torch.allclose(group_scales(low.amin(0), high.amax(0), found, INT8), scales.amax(0))
    assert group_scales(torch.zeros(3), torch.zeros(3), group(torch.zeros(3), torch.zeros(3), 2), INT8).tolist() == [1]


def test_groups_round_better_than_one_scale() -> None:
    x = torch.randn(512, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 1, 64)
    low, high = x.amin(0), x.amax(0)
    found = group(low, high, 8)
    scale = group_scales(low, high, found, INT8)[found.ids]
    one = x.abs().amax() / 127
    error = [float((INT8.round(x / s) * s - x).square().mean()) for s in (scale, one)]
    assert error[0] < 0.4 * error[1]


def test_outlier_tokens_are_those_in_front() -> None:
    high = _random(3, 77) * 5 + 10
    assert outlier_tokens(-high, high) == 0  # T5
    high[:, 0] = 825  # CLIP
    assert outlier_tokens(-high, high) == 1
    high[:, 1] = 400
    assert outlier_tokens(-high, high) == 2
    high[:, 40] = 900  # not in front
    assert outlier_tokens(-high, high) == 2


def test_many_large_tokens_are_no_outliers() -> None:
    high = torch.ones(1, 10)
    high[:, :4] = 100
    assert outlier_tokens(-high, high) == 0


def test_says_what_cannot_be_grouped() -> None:
    with pytest.raises(ValueError, match="0 groups of 3"):
        group(torch.zeros(3), torch.zeros(3), 0)
    with pytest.raises(ValueError, match="2 groups of 0"):
        group(torch.zeros(0), torch.zeros(0), 2)
