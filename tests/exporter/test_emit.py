"""Ranges of symbolic sizes, and ports that several sizes share; whole components are in test_build.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dexport.exporter.emit import Emitter, Ranges, _common
from dexport.runtime.builders.plugins import plugin_sources
from dexport.runtime.manifest import Plugin, Port
from dexport.targets.catalogue import find
from tests.exporter.spellings.quantized_graphs import Form, branched_graph


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


@pytest.mark.parametrize("group", [64, 0])
def test_a_kit_has_the_sources_of_the_plugins_that_its_models_need(group: int, tmp_path: Path) -> None:
    graph = branched_graph(Form(weight="int4", group=group, activation="int8", mode="dynamic"), rank=16)
    with Emitter(tmp_path, find("jetson-orin@jetpack-6.2"), "fp16", torch.float16) as emitter:
        emitter.add(graph, Ranges(rows=((1, 2, 4),), steps=(1, 1, 1)), None)
        emitter.finish()
    files = tuple(f"plugins/{relative}" for relative in plugin_sources("lowrank_linear"))
    assert emitter.plugins == ((Plugin(name="lowrank_linear", files=files),) if group else ())
    found = {path.relative_to(tmp_path).as_posix() for path in (tmp_path / "plugins").rglob("*") if path.is_file()}
    assert found == set(files if group else ())
    assert not group or {f"plugins/{name}" for name in ("lowrank_linear/kernel.cu", "cuda/tensorrt_plugin.h")} < found
    assert ("library lowrank_linear" in (tmp_path / "kit" / "build.sh").read_text(encoding="utf-8")) == bool(group)
