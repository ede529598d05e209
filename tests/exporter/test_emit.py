"""Ranges of symbolic sizes, and ports that several sizes share; whole components are in test_build.py."""

from __future__ import annotations

from dexport.exporter.emit import Ranges, _common
from dexport.runtime.manifest import Port


def test_symbols_take_their_range_in_each_profile() -> None:
    ranges = Ranges(rows=((2, 4, 4), (1, 2, 2)), steps=(4, 20, 40))
    assert ranges.shapes(("batch", 3, "steps"), 0) == ((2, 3, 4), (4, 3, 20), (4, 3, 40))
    assert ranges.shapes(("batch", 3), 1) == ((1, 3), (2, 3), (2, 3))


def test_dimensions_in_which_sizes_differ_become_symbols() -> None:
    small = {"latent": Port(dtype="float32", shape=("batch", 4, 8, 8)), "ids": Port(dtype="int64", shape=("batch", 120))}
    large = {"latent": Port(dtype="float32", shape=("batch", 4, 8, 12)), "ids": Port(dtype="int64", shape=("batch", 120))}
    both = _common(small, large)
    assert both["latent"].shape == ("batch", 4, 8, "latent_axis3") and both["ids"].shape == ("batch", 120)
    assert _common(both, small) == both
    extra = {**large, "mask": Port(dtype="bool", shape=("batch",))}
    assert set(_common(small, extra)) == {"latent", "ids", "mask"}
