"""Reservoirs: which rows stay depends on nothing but the seed and where rows come from."""

from __future__ import annotations

import torch

from dexport.passes.quantization.reservoir import Origin, Reservoir, empty_reservoir, row_keys


def _offer(reservoir: Reservoir, origin: Origin, rows: torch.Tensor) -> None:
    reservoir.offer(origin, len(rows), lambda chosen: rows[chosen])


def _batch(occasion: int, count: int) -> torch.Tensor:
    """Rows that say who they are: occasion and number."""
    return torch.stack([torch.full((count,), float(occasion)), torch.arange(count).float()], 1)


def test_keeps_everything_while_there_is_room() -> None:
    reservoir = empty_reservoir(1, 10, 2)
    _offer(reservoir, Origin(0, 0, 3), _batch(0, 4))
    rows, steps = reservoir.content()
    assert sorted(rows[:, 1].tolist()) == [0, 1, 2, 3]
    assert steps.tolist() == [3, 3, 3, 3]


def test_the_smallest_keys_stay_whatever_the_order() -> None:
    batches = {occasion: _batch(occasion, 40) for occasion in range(5)}
    forward, backward = empty_reservoir(7, 16, 2), empty_reservoir(7, 16, 2)
    for occasion, rows in batches.items():
        _offer(forward, Origin(occasion, 0, occasion), rows)
    for occasion, rows in reversed(batches.items()):
        _offer(backward, Origin(occasion, 0, occasion), rows)
    assert all(torch.equal(a, b) for a, b in zip(forward.content(), backward.content()))
    keys = torch.stack([row_keys(7, Origin(occasion, 0, occasion), 40) for occasion in batches])
    best = keys.flatten().argsort()[:16]
    rows, steps = forward.content()
    assert torch.equal(rows, torch.stack([batches[int(i) // 40][int(i) % 40] for i in best]))
    assert torch.equal(steps, best // 40)


def test_halves_merge_into_the_whole() -> None:
    whole, halves = empty_reservoir(3, 8, 2), (empty_reservoir(3, 8, 2), empty_reservoir(3, 8, 2))
    for occasion in range(4):
        for reservoir in (whole, halves[occasion // 2]):
            _offer(reservoir, Origin(occasion, 0, 0), _batch(occasion, 9))
    halves[0].absorb(halves[1])
    assert all(torch.equal(a, b) for a, b in zip(whole.content(), halves[0].content()))


def test_an_empty_half_changes_nothing() -> None:
    reservoir = empty_reservoir(3, 8, 2)
    _offer(reservoir, Origin(0, 0, 0), _batch(0, 3))
    before = [t.clone() for t in reservoir.content()]
    reservoir.absorb(empty_reservoir(3, 8, 2))
    assert all(torch.equal(a, b) for a, b in zip(before, reservoir.content()))


def test_keys_differ_with_everything_that_names_a_row_and_are_uniform() -> None:
    origins = [Origin(0, 0, 0), Origin(1, 0, 0), Origin(0, 1, 0), Origin(0, 0, 1)]
    keys = torch.stack([*(row_keys(5, origin, 5000) for origin in origins), row_keys(6, origins[0], 5000)])
    assert len(keys.unique()) == keys.numel()
    # The mean of n uniform numbers lies within 5 standard errors, 5 * 0.289 / sqrt(n), of a half.
    assert torch.all(((keys.double() / 2.0**63).mean(1) - 0.5).abs() < 5 * 0.289 / 5000**0.5)
