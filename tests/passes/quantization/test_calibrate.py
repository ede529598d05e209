"""Accumulators against brute force over everything that was seen, and halves against the whole."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dexport.errors import Failure
from dexport.exporter.capture import Input
from dexport.passes.graph import BATCH, Graph, Kind
from dexport.passes.quantization.calibrate import Accumulator, Watched, calibration_bytes, empty_accumulator, site_statistics, watched
from dexport.passes.quantization.reservoir import Origin
from dexport.passes.quantization.statistics import BINS, SiteStatistics
from tests.passes.graphs import graph_of

TOKENS = Watched("x", ("a", "b"), 0, 4, 3, 2)
PIXELS = Watched("x", ("c",), 2, 3, None, 2)


def _shape(about: Watched, batch: int) -> tuple[int, ...]:
    return (batch, 3, 5, 7) if about.spatial else (batch, 3, 4)


def _filled(about: Watched, values: list[tuple[Origin, torch.Tensor]]) -> Accumulator:
    accumulator = empty_accumulator(about, "part", 11)
    for origin, seen in values:
        accumulator.update(origin, seen)
    return accumulator


def _values(about: Watched, scales: list[float]) -> list[tuple[Origin, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(_shape(about, 1 + index % 3), generator=generator) * scale for index, scale in enumerate(scales)]
    return [(Origin(index, 0, index % about.steps), tensor) for index, tensor in enumerate(made)]


def _statistics(accumulator: Accumulator) -> SiteStatistics:
    found = accumulator.statistics()
    assert found is not None
    return found


def _same(one: SiteStatistics, other: SiteStatistics) -> bool:
    pairs = [(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(SiteStatistics)]
    return all(a is b is None or torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("about", [TOKENS, PIXELS], ids=["linear", "conv"])
def test_equals_brute_force(about: Watched) -> None:
    values = _values(about, [1.0, 0.1, 30.0, 2.0, 0.5, 7.0])
    found = _statistics(_filled(about, values))
    for step in range(about.steps):
        seen = [v for origin, v in values if origin.step == step]
        rows = torch.cat([v.movedim(1, -1).flatten(0, -2) if about.spatial else v.flatten(0, -2) for v in seen])
        assert found.count[step] == len(rows)
        assert torch.equal(found.minimum[step], rows.amin(0))
        assert torch.equal(found.maximum[step], rows.amax(0))
        assert torch.equal(found.absmax[step], rows.abs().amax(0))
        torch.testing.assert_close(found.mean[step], rows.double().mean(0).float(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found.square[step], rows.double().square().mean(0).float(), rtol=1e-5, atol=1e-6)
        limit = float(found.limit[step])
        assert math.log2(limit).is_integer() and limit / 2 <= rows.abs().max() < limit
        edges = torch.linspace(-limit, limit, BINS + 1, dtype=torch.float64)
        assert torch.equal(found.histogram[step], torch.histogram(rows.double(), edges)[0].long())
        if about.tokens:
            assert found.token_minimum is not None and found.token_maximum is not None
            assert torch.equal(found.token_minimum[step], torch.cat(seen).amin((0, 2)))
            assert torch.equal(found.token_maximum[step], torch.cat(seen).amax((0, 2)))
        kept = found.rows[found.row_steps == step]
        assert len(kept) == min(len(rows), about.rows)  # all of so few
        assert {tuple(row) for row in kept.tolist()} == {tuple(row) for row in rows.tolist()}


def test_only_linears_have_token_ranges() -> None:
    assert _statistics(_filled(PIXELS, _values(PIXELS, [1.0]))).token_minimum is None


SMALL = st.floats(-1e4, 1e4, width=32).filter(lambda v: v == 0 or abs(v) > 1e-30)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(SMALL, min_size=12, max_size=12), min_size=2, max_size=7),
    st.integers(0, 7),
    st.sampled_from([TOKENS, dataclasses.replace(PIXELS, channels=3)]),
)
def test_two_halves_are_the_whole_bit_for_bit(content: list[list[float]], cut: int, about: Watched) -> None:
    shape = (1, 3, 2, 2) if about.spatial else (1, 3, 4)
    values = [(Origin(index, 0, index % 2), torch.tensor(numbers).reshape(shape)) for index, numbers in enumerate(content)]
    whole = _filled(about, values)
    first, second = _filled(about, values[:cut]), _filled(about, values[cut:])
    first.absorb(second)
    assert _same(_statistics(first), _statistics(whole))
    for name in ("whole", "fraction"):
        assert torch.equal(getattr(first, name), getattr(whole, name))


def test_a_value_on_the_edge_of_the_range_falls_into_one_bin_before_and_after_doubling() -> None:
    edge, more = torch.full((1, 3, 4), 4.0), torch.full((1, 3, 4), -9.0)
    after = _filled(TOKENS, [(Origin(0, 0, 0), edge), (Origin(1, 0, 0), more)])
    before = _filled(TOKENS, [(Origin(1, 0, 0), more), (Origin(0, 0, 0), edge)])
    assert torch.equal(after.histogram, before.histogram)
    assert after.limit[0] == 16
    assert after.histogram[0].nonzero()[:, 0].tolist() == [256 - 9 * 16, 256 + 4 * 16]


def test_only_zeros_are_statistics_too() -> None:
    found = _statistics(_filled(TOKENS, [(Origin(0, 0, 0), torch.zeros(2, 3, 4))]))
    assert found.histogram[0, BINS // 2] == 24
    assert float(found.absmax.max()) == 0
    assert found.count.tolist() == [6, 0]
    assert torch.isfinite(found.minimum).all() and torch.isfinite(found.maximum).all()


def test_huge_and_tiny_values_keep_their_moments() -> None:
    rows = torch.tensor([[3e5, -3e5, 1e-4, -1e-4]]).repeat(3, 1)[None]
    found = _statistics(_filled(TOKENS, [(Origin(i, 0, 0), rows) for i in range(50)]))
    torch.testing.assert_close(found.mean[0], rows[0, 0], rtol=1e-6, atol=0)
    torch.testing.assert_close(found.square[0], rows[0, 0].square(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_named(bad: float) -> None:
    value = torch.zeros(1, 3, 4)
    value[0, 1, 2] = bad
    with pytest.raises(Failure, match=r"a, step 1.*finite"):
        _filled(TOKENS, [(Origin(0, 0, 1), value)])


def test_nothing_seen_is_no_statistics() -> None:
    assert empty_accumulator(TOKENS, "part", 0).statistics() is None
    assert site_statistics([empty_accumulator(TOKENS, "part", 0)]) == {}


def test_sites_of_one_value_share_what_was_seen() -> None:
    found = site_statistics([_filled(TOKENS, _values(TOKENS, [1.0]))])
    assert set(found) == {"a", "b"}
    assert found["a"] is found["b"]


class _Layers(nn.Module):
    """Linears that share a source, one after a reshape that hides the tokens, a grouped and a one-dimensional convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.wide = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2000)
        self.flat = nn.Linear(2000, 6)
        self.conv = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.line = nn.Conv1d(6, 5, 1)

    def forward(self, latent: torch.Tensor, picture: torch.Tensor) -> torch.Tensor:
        x = self.wide(self.q(latent) + self.k(latent)).reshape(-1, 2000)
        return self.line(self.flat(x).reshape(-1, 6, 6)).sum() + self.conv(picture).sum()


@pytest.fixture(scope="module")
def graph() -> Graph:
    inputs = [Input(n, s, torch.float32, Kind.LATENT) for n, s in (("latent", (BATCH, 6, 8)), ("picture", (BATCH, 4, 5, 5)))]
    return graph_of(_Layers(), inputs)


def test_watches_every_value_once(graph: Graph) -> None:
    found = {entry.sites: entry for entry in watched(graph, 20)}
    assert set(found) == {("q", "k"), ("wide",), ("flat",), ("conv",), ("line",)}
    assert (found["q", "k"].channels, found["q", "k"].tokens) == (8, 6)
    assert (found["flat",].channels, found["flat",].tokens) == (2000, None)
    assert (found["conv",].channels, found["conv",].spatial) == (4, 2)
    assert (found["line",].channels, found["line",].spatial) == (6, 1)
    assert found["flat",].rows == (2 << 20) // 8000


def test_bytes_are_known_before(graph: Graph) -> None:
    real = [empty_accumulator(entry, "model", 0) for entry in watched(graph, 20)]
    assert calibration_bytes(graph, 20) == sum(t.nbytes for accumulator in real for t in accumulator.tensors().values())


def test_half_precision_and_one_picture_without_a_batch_axis() -> None:
    half = _statistics(_filled(TOKENS, [(Origin(0, 0, 0), torch.ones(1, 3, 4, dtype=torch.bfloat16))]))
    assert half.mean[0].tolist() == [1.0] * 4
    single = _statistics(_filled(PIXELS, [(Origin(0, 0, 0), torch.arange(105.0).reshape(3, 5, 7))]))
    assert single.count.tolist() == [35, 0]
    assert single.maximum[0].tolist() == [34.0, 69.0, 104.0]
