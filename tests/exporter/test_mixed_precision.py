"""Allocation on a tiny pipeline: the budget holds in the graphs, layers that share a value are alike, what cannot be is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from dexport.errors import UserError
from dexport.exporter.latency import StepLatency
from dexport.exporter.mixed_precision import Allocated, Wanted, allocate_treatments, allocated, choice_units
from dexport.exporter.quantization import QuantizedSplit, quantized_split
from dexport.exporter.sensitivity import Probe
from dexport.exporter.torch_pipeline import TorchPipeline
from dexport.passes.quantization.recipe import ActivationSpec, MixedPrecisionSpec, Recipe, Treatment, WeightSpec
from dexport.passes.quantization.recipe_file import read_recipe
from dexport.passes.quantization.scratch import Scratch
from dexport.passes.quantization.sites import ends, sites
from dexport.passes.quantization.statistics import Statistics
from dexport.targets.catalogue import find

RECIPE = read_recipe(
    """
name: mixed
summary: for tests
denoiser:
  ends: keep
  default: &w4
    weights: {format: int4}
    activations: {format: int8, mode: dynamic, granularity: token}
  layers:
    "re:blocks\\\\.0\\\\.ff\\\\.net\\\\.2": {weights: {format: int8}}
  mixed_precision:
    average_bits: 7
    choices:
      w4: *w4
      w8:
        weights: {format: int8}
        activations: {format: int8, mode: dynamic, granularity: token}
""",
    "a test",
)
OUTPUT = Probe(metric="output", ranges=2)


def _mixed(**changes: object) -> Recipe:
    section = RECIPE.sections["denoiser"]
    assert section.mixed_precision is not None
    spec: MixedPrecisionSpec = replace(section.mixed_precision, **changes)  # type: ignore[arg-type]
    return replace(RECIPE, sections={"denoiser": replace(section, mixed_precision=spec)})


def _allocated(opened: TorchPipeline, calibrated: Statistics, folder: Path, recipe: Recipe = RECIPE, **wanted: object) -> Allocated:
    asked = Wanted(**{"probe": OUTPUT, **wanted})  # type: ignore[arg-type]
    return allocated(opened, recipe, recipe.sections["denoiser"], calibrated, asked, Scratch(folder), lambda stage, done: None)


def _quantized(opened: TorchPipeline, calibrated: Statistics, folder: Path, found: Allocated, skip: tuple[str, ...] = ()) -> QuantizedSplit:
    return quantized_split(opened.split, RECIPE, calibrated, Scratch(folder), overrides=found.overrides, skip=skip)


@pytest.mark.parametrize("bits", [6.2, 7.0, 9.0])
def test_the_budget_holds_in_the_graphs(opened: TorchPipeline, calibrated: Statistics, tmp_path: Path, bits: float) -> None:
    found = _allocated(opened, calibrated, tmp_path, average_bits=bits)
    quantized = _quantized(opened, calibrated, tmp_path, found)
    treated = quantized.treated_bits("denoiser")
    assert treated == pytest.approx(found.average_bits, rel=1e-9)
    assert treated is not None and treated <= bits
    loop = opened.split.denoiser.loop
    layers = {layer.site: layer for layer in quantized.layers}
    for name in ends(loop):
        assert layers[name].weights == "16 bits"
    for name, choice in found.choices.items():
        assert layers[name].weights == {"w4": "int4", "w8": "int8"}[choice]
    named = [name for name in layers if name.endswith("blocks.0.ff.net.2")]
    assert named and all(name not in found.choices and layers[name].weights == "int8" for name in named)
    assert set(found.choices) | set(named) | set(ends(loop)) == set(layers)


def test_more_bits_hurt_less_and_enough_bits_give_everything_eight(opened: TorchPipeline, calibrated: Statistics, tmp_path: Path) -> None:
    harms = []
    for bits in (6.2, 7.0, 8.0, 20.0):
        found = _allocated(opened, calibrated, tmp_path, average_bits=bits)
        table = found.tables["denoiser"]
        harms.append(sum(table.harm(unit, found.choices[unit], "layer") for unit in table.units))
    assert harms == sorted(harms, reverse=True) and harms[0] > harms[-1]
    assert set(found.choices.values()) == {"w8"}


def test_bytes_and_skipped_layers(opened: TorchPipeline, calibrated: Statistics, tmp_path: Path) -> None:
    skip = ("re:attn1",)
    found = _allocated(opened, calibrated, tmp_path, average_bits=7.0, skip=skip)
    assert not any("attn1" in name for name in found.choices)
    quantized = _quantized(opened, calibrated, tmp_path, found, skip)
    treated = [layer for layer in quantized.layers if layer.weights != "16 bits"]
    size = sum(layer.bits * layer.parameters for layer in treated) / 8
    assert _allocated(opened, calibrated, tmp_path, budget_bytes=round(size), skip=skip).choices == found.choices
    with pytest.raises(
        UserError, match=r"at least (\d+) bytes \((\d\.\d+) bits per weight\), the smallest possible, got 100 bytes"
    ) as error:
        _allocated(opened, calibrated, tmp_path, budget_bytes=100, skip=skip)
    smallest = int(str(error.value).split("at least ")[1].split()[0])
    least = _allocated(opened, calibrated, tmp_path, budget_bytes=smallest, skip=skip)
    assert set(least.choices.values()) == {"w4"}


def test_a_budget_of_time(opened: TorchPipeline, calibrated: Statistics, tmp_path: Path) -> None:
    """The step as estimated for a GPU keeps within it; attention and the ends, which nobody chooses, count."""
    loop = opened.split.denoiser.loop
    latency = StepLatency(loop, find("rtx-3060"), rows=2)
    section = RECIPE.sections["denoiser"]
    assert section.mixed_precision is not None
    keep, w8 = Treatment(), section.mixed_precision.choices["w8"]
    recipe = _mixed(choices={"w8": w8, "keep": keep})
    layers = {site.name: site for site in sites(loop) if site.name not in ends(loop)}

    def step(treatments: Mapping[str, Treatment]) -> float:
        return latency.others(layers.values()) + sum(latency.layer(layers[name], t) for name, t in treatments.items())

    named = {name: section.layers["re:blocks\\.0\\.ff\\.net\\.2"] for name in layers if name.endswith("blocks.0.ff.net.2")}
    slowest, fastest = (step({name: named.get(name) or treatment for name in layers}) for treatment in (keep, w8))  # type: ignore[misc]
    budget = (slowest + fastest) / 2
    found = _allocated(opened, calibrated, tmp_path, recipe, budget_ms=budget, latency=latency)
    chosen = {name: keep if treatment is None else treatment for name, treatment in found.overrides["denoiser"].items()}
    assert set(found.choices.values()) == {"w8", "keep"}
    assert fastest < step({**named, **chosen}) <= budget  # type: ignore[dict-item]
    with pytest.raises(UserError, match=r"at least (\S+) ms, the smallest possible") as error:
        _allocated(opened, calibrated, tmp_path, recipe, budget_ms=fastest / 2, latency=latency)
    smallest = float(str(error.value).split("at least ")[1].split()[0])
    assert smallest == pytest.approx(fastest, rel=1e-3)
    least = _allocated(opened, calibrated, tmp_path, recipe, budget_ms=smallest, latency=latency)
    assert set(least.choices.values()) == {"w8"}


def test_layers_that_read_one_value_are_alike_where_activations_differ(
    opened: TorchPipeline, calibrated: Statistics, tmp_path: Path
) -> None:
    coarse = Treatment(weights=WeightSpec(format="int4"), activations=ActivationSpec(format="int4", mode="dynamic", granularity="token"))
    fine = replace(
        coarse, weights=WeightSpec(format="int8"), activations=ActivationSpec(format="int8", mode="dynamic", granularity="token")
    )
    loop = opened.split.denoiser.loop
    names = frozenset(site.name for site in sites(loop))
    tied = choice_units(loop, {"w4a4": coarse, "w8a8": fine}, names)
    alone = choice_units(loop, {"w4": coarse, "w8": replace(coarse, weights=WeightSpec(format="int8"))}, names)
    shared = {f"transformer_blocks.0.attn1.to_{letter}" for letter in "qkv"}
    assert sum(shared <= set(members) for members in tied.values()) == 1
    assert all(len(members) == 1 for members in alone.values()) and len(alone) == len(names)
    found = _allocated(opened, calibrated, tmp_path, _mixed(choices={"w4a4": coarse, "w8a8": fine}))
    source = {site.name: site.source for site in sites(loop)}
    of_source: dict[str, set[str]] = {}
    for name, choice in found.choices.items():
        of_source.setdefault(source[name], set()).add(choice)
    assert all(len(chosen) == 1 for chosen in of_source.values())
    assert set(found.choices.values()) == {"w4a4", "w8a8"}


def test_the_worst_layers_can_be_kept(opened: TorchPipeline, calibrated: Statistics, tmp_path: Path) -> None:
    spec = RECIPE.sections["denoiser"].mixed_precision
    assert spec is not None
    recipe = _mixed(choices={"w4": spec.choices["w4"], "keep": Treatment()})
    found = _allocated(opened, calibrated, tmp_path, recipe, average_bits=8.0)
    kept = {name for name, choice in found.choices.items() if choice == "keep"}
    assert kept and kept == {name for name, treatment in found.overrides["denoiser"].items() if treatment is None}
    table = found.tables["denoiser"]
    quantized = _quantized(opened, calibrated, tmp_path, found)
    layers = [layer for layer in quantized.layers if layer.site in found.choices or layer.site.endswith("blocks.0.ff.net.2")]
    assert {layer.site for layer in layers if layer.weights == "16 bits"} == kept
    size = sum(layer.bits * layer.parameters for layer in layers) / sum(layer.parameters for layer in layers)
    assert size == pytest.approx(found.average_bits) and size <= 8.0
    worst = max(set(found.choices) - kept, key=lambda name: table.harm(name, "w4", "layer"))
    same_size = [
        n for n in kept if next(x.parameters for x in layers if x.site == n) >= next(x.parameters for x in layers if x.site == worst)
    ]
    assert all(table.harm(name, "w4", "layer") >= table.harm(worst, "w4", "layer") for name in same_size)


def test_groups_are_ranked_by_their_own_measure_and_judged_by_pictures(
    opened: TorchPipeline, calibrated: Statistics, tmp_path: Path
) -> None:
    recipe = _mixed(groups={"prompt": "re:attn2", "quality": "re:."}, metric="end-to-end")
    stages: list[str] = []
    wanted = Wanted(probe=Probe(metric="end-to-end", ranges=1, pictures=1), average_bits=7.0, skip=("re:attn1",))
    section = recipe.sections["denoiser"]
    found = allocated(opened, recipe, section, calibrated, wanted, Scratch(tmp_path), lambda stage, done: stages.append(stage))
    assert stages.count("divide the budget between groups of layers") >= 2
    assert found.average_bits <= 7.0
    table = found.tables["denoiser"]
    assert all({"picture", "output", "prompt"} <= set(h) for unit in table.harms.values() for h in unit.values())


def test_groups_that_leave_layers_out_or_match_none_are_refused(opened: TorchPipeline, calibrated: Statistics, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a group for every layer, got none for"):
        _allocated(opened, calibrated, tmp_path, _mixed(groups={"prompt": "re:attn2"}))
    with pytest.raises(UserError, match="groups: prompt: re:nowhere"):
        _allocated(opened, calibrated, tmp_path, _mixed(groups={"prompt": "re:nowhere", "rest": "re:."}))
    with pytest.raises(UserError, match="expected a budget, got none"):
        _allocated(opened, calibrated, tmp_path, _mixed(average_bits=None))
    with pytest.raises(UserError, match="sqnr or output or model or end-to-end"):
        allocate_treatments(opened, _mixed(metric="fid"), calibrated, opened.plan.options, Scratch(tmp_path))


def test_options_of_a_build(opened: TorchPipeline, calibrated: Statistics, tmp_path: Path) -> None:
    options = replace(opened.plan.options, recipe="vidit-q-mp", average_bits=6.5)
    found = allocate_treatments(opened, RECIPE, calibrated, options, Scratch(tmp_path))
    assert found == _allocated(opened, calibrated, tmp_path, average_bits=6.5).overrides
    plain = replace(RECIPE, sections={"denoiser": replace(RECIPE.sections["denoiser"], mixed_precision=None)})
    assert allocate_treatments(opened, plain, calibrated, options, Scratch(tmp_path)) == {}
