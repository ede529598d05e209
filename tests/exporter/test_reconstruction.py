"""Learned rounding in whole pipelines: inputs are what runs feed the loop, codes get better, and what cannot be done is said."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dexport.errors import UserError
from dexport.exporter.calibration import calibrate
from dexport.exporter.calibration_request import CalibrationRequest
from dexport.exporter.options import BuildOptions
from dexport.exporter.quantization import QuantizedSplit, quantized_split
from dexport.exporter.reconstruction import loop_inputs, refine
from dexport.exporter.torch_pipeline import TorchPipeline, open_torch_pipeline
from dexport.passes.graph import Graph, run
from dexport.passes.quantization.recipe import Recipe, ReconstructionSpec
from dexport.passes.quantization.recipe_file import read_recipe
from dexport.passes.quantization.scratch import Scratch
from dexport.passes.quantization.sites import sites
from dexport.passes.quantization.statistics import Statistics
from dexport.passes.quantization.unit_site import quantized_weight
from tests.pipelines import tiny_dit, tiny_stable_diffusion

STEPS = 2
RECIPE = """
name: learned
summary: W4A8 with learned rounding.
denoiser:
  ends: keep
  default:
    weights: {format: int4, rounding: adaround}
    activations: {format: int8}
    split_concat: true
  reconstruction: {unit: block, iterations: 25, batch: 8, learning_rate: 0.05}
"""


def _opened(directory: Path) -> TorchPipeline:
    return open_torch_pipeline(BuildOptions(model=str(directory), target="cpu", steps=(STEPS,)))


@pytest.fixture(scope="module")
def pipeline(pixart: Path) -> TorchPipeline:
    return _opened(pixart)


@pytest.fixture(scope="module")
def statistics(pipeline: TorchPipeline) -> Statistics:
    return calibrate(pipeline, CalibrationRequest(conditions=("a red circle", "a large blue square", "a square"), seed=5, samples=6), None)


@pytest.fixture(scope="module")
def dit(tmp_path_factory: pytest.TempPathFactory) -> tuple[TorchPipeline, Statistics]:
    """Labels and steps mix before the loop: its values come from the schedule prelude."""
    opened = _opened(tiny_dit(tmp_path_factory.mktemp("dit")))
    return opened, calibrate(opened, CalibrationRequest(conditions=(3, 1), seed=5, samples=4), None)


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> tuple[TorchPipeline, Statistics]:
    opened = _opened(tiny_stable_diffusion(tmp_path_factory.mktemp("sd")))
    return opened, calibrate(opened, CalibrationRequest(conditions=("a red circle",), seed=5, samples=2), None)


def _recipe(**changes: Any) -> Recipe:
    recipe = read_recipe(RECIPE, "test")
    section = recipe.sections["denoiser"]
    assert section.reconstruction is not None
    return replace(recipe, sections={"denoiser": replace(section, reconstruction=replace(section.reconstruction, **changes))})


def _check_inputs(pipeline: TorchPipeline, statistics: Statistics) -> None:
    """Every row is what a run of the same pictures fed the loop at that step."""
    loop, samples = pipeline.split.denoiser.loop, statistics.samples
    ports = {node.name: port.name for node, port in zip(loop.placeholders().values(), loop.inputs)}
    seen: dict[tuple[str, int], torch.Tensor] = {}

    def watch(component: str, step: int, node: Any, value: Any) -> None:
        if component == loop.name and node.op == "placeholder":
            seen[ports[node.name], step] = value.clone()

    conditions = list(samples.prompts) if pipeline.plan.pipeline.texts else [int(p) for p in samples.prompts]
    pipeline.run(conditions, samples.seeds, watch=watch)
    entering = loop_inputs(pipeline, statistics)
    rows = [(i, half) for i in range(len(samples.steps)) for half in (0, 1)]
    assert len(entering.steps) == len(rows)
    for row, (i, half) in enumerate(rows):
        step, picture = int(samples.steps[i]), int(samples.pictures[i])
        assert int(entering.steps[row]) == step
        for port in loop.inputs:
            got, wanted = entering.values[port.name].rows(torch.tensor([row])), seen[port.name, step]
            place = 0 if len(wanted) == 1 else half * len(conditions) + picture
            torch.testing.assert_close(got[0], wanted[place], rtol=1e-4, atol=1e-5)


def test_inputs_are_those_of_the_run(pipeline: TorchPipeline, statistics: Statistics) -> None:
    _check_inputs(pipeline, statistics)


def test_inputs_from_a_schedule_prelude_too(dit: tuple[TorchPipeline, Statistics]) -> None:
    _check_inputs(*dit)


def test_prompts_are_encoded_in_chunks(pipeline: TorchPipeline, statistics: Statistics, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = loop_inputs(pipeline, statistics)
    monkeypatch.setattr("dexport.exporter.reconstruction._PROMPTS", 2)
    every = torch.arange(len(whole.steps))
    for name, found in loop_inputs(pipeline, statistics).values.items():
        torch.testing.assert_close(found.rows(every), whole.values[name].rows(every), rtol=1e-4, atol=1e-5)


def _quantized(
    pipeline: TorchPipeline, statistics: Statistics, recipe: Recipe, folder: Path, learn: bool = True
) -> tuple[QuantizedSplit, list[str]]:
    told: list[str] = []
    scratch = Scratch(folder)
    found = refine(pipeline, recipe, statistics, scratch, lambda stage, done: told.append(stage)) if learn else None
    return quantized_split(pipeline.split, recipe, statistics, scratch, refine=found), told


def _error(pipeline: TorchPipeline, statistics: Statistics, quantized: QuantizedSplit) -> float:
    """Mean squared error of the loop's output over the samples."""
    entering, total = loop_inputs(pipeline, statistics), 0.0
    for row in range(len(entering.steps)):
        inputs = {name: found.rows(torch.tensor([row])) for name, found in entering.values.items()}
        pair = [run(graph, inputs) for graph in (pipeline.split.denoiser.loop, quantized.split.denoiser.loop)]
        (plain, rounded) = (next(iter(outputs.values())) for outputs in pair)
        total += float((plain - rounded).square().mean())
    return total


@pytest.mark.parametrize("unit", ["block", "half-block", "layer"])
def test_the_loop_comes_nearer_to_what_it_was(unit: str, pipeline: TorchPipeline, statistics: Statistics, tmp_path: Path) -> None:
    recipe = _recipe(unit=unit)
    nearest, _ = _quantized(pipeline, statistics, recipe, tmp_path, learn=False)
    learned, told = _quantized(pipeline, statistics, recipe, tmp_path)
    assert _error(pipeline, statistics, learned) < 0.8 * _error(pipeline, statistics, nearest)
    assert len(told) == {"block": 2, "half-block": 6, "layer": 16}[unit]
    assert all(re.fullmatch(r"transformer_blocks\.\S+: output SNR [\d.]+ -> [\d.]+ dB", stage) for stage in told)
    assert learned.average_bits("denoiser") == nearest.average_bits("denoiser")


def _codes(pipeline: TorchPipeline, statistics: Statistics, recipe: Recipe, folder: Path) -> torch.Tensor:
    quantized, _ = _quantized(pipeline, statistics, recipe, folder)
    weights = quantized.split.denoiser.loop.weights
    return torch.cat([weights[name].load().flatten() for name in sorted(weights) if name.endswith(".codes")])


def test_the_same_every_time(pipeline: TorchPipeline, statistics: Statistics, tmp_path: Path) -> None:
    recipe = _recipe(iterations=3, drop=0.5, inner=1.0)
    first, second = (_codes(pipeline, statistics, recipe, tmp_path) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("drop", [0.5, 1.0])
def test_scales_are_learned_if_asked(drop: float, pipeline: TorchPipeline, statistics: Statistics, tmp_path: Path) -> None:
    """Together with the weights, or after them where these are fitted to exact activations."""

    def scales(graph: Graph) -> torch.Tensor:
        names = [str(n.target) for n in graph.module.graph.nodes if n.op == "get_attr" and str(n.target).endswith("activation_scale")]
        return torch.stack(
            [graph.module.get_parameter(n) if n in dict(graph.module.named_parameters()) else graph.module.get_buffer(n) for n in names]
        )

    kept, _ = _quantized(pipeline, statistics, _recipe(iterations=4, drop=drop), tmp_path)
    learned, _ = _quantized(pipeline, statistics, _recipe(iterations=4, drop=drop, activations=True), tmp_path)
    before, after = scales(kept.split.denoiser.loop), scales(learned.split.denoiser.loop)
    assert before.shape == after.shape and not torch.equal(before, after) and bool((after > 0).all())


def test_a_unit_that_does_not_improve_keeps_nearest_rounding(pipeline: TorchPipeline, statistics: Statistics, tmp_path: Path) -> None:
    recipe = _recipe(iterations=2, learning_rate=1e-9)
    learned, _ = _quantized(pipeline, statistics, recipe, tmp_path)
    notes = {layer.note for layer in learned.layers if layer.bits < 16}
    assert notes == {"rounded to the nearest: learned rounding was not better"}
    nearest, _ = _quantized(pipeline, statistics, recipe, tmp_path, learn=False)
    assert _error(pipeline, statistics, learned) == _error(pipeline, statistics, nearest)


def test_layers_that_are_rounded_otherwise_stay(pipeline: TorchPipeline, statistics: Statistics, tmp_path: Path) -> None:
    recipe = _recipe(iterations=3)
    section = recipe.sections["denoiser"]
    assert section.default is not None and section.default.weights is not None
    plain = replace(section.default, weights=replace(section.default.weights, rounding="nearest"))
    recipe = replace(recipe, sections={"denoiser": replace(section, layers={"re:attn": plain})})
    learned, told = _quantized(pipeline, statistics, recipe, tmp_path)
    nearest, _ = _quantized(pipeline, statistics, recipe, tmp_path, learn=False)
    pairs = zip(learned.split.denoiser.loop.weights.items(), nearest.split.denoiser.loop.weights.values())
    changed = {name for (name, new), old in pairs if name.endswith("codes") and not torch.equal(new.load(), old.load())}
    assert len(told) == 2 and changed and not any("attn" in name for name in changed)


def test_a_unet_is_reconstructed_with_its_convolutions(unet: tuple[TorchPipeline, Statistics], tmp_path: Path) -> None:
    opened, seen = unet
    recipe = _recipe(iterations=8)
    nearest, _ = _quantized(opened, seen, recipe, tmp_path, learn=False)
    learned, told = _quantized(opened, seen, recipe, tmp_path)
    assert _error(opened, seen, learned) < _error(opened, seen, nearest)
    assert any(stage.startswith("down_blocks.0.resnets.0:") for stage in told)
    assert not [layer.note for layer in learned.layers if "nearest:" in layer.note and "not better" not in layer.note]


TEMPORAL = re.compile(r"time_emb|t_embedder|timestep|adaln_single|norm1\.linear|norm1\.emb")


@pytest.mark.parametrize("family", ["pixart", "unet"])
def test_layers_that_make_temporal_features_are_a_table(family: str, request: pytest.FixtureRequest) -> None:
    """TFMQ's temporal information blocks: no layer of them is in the loop, and their exact outputs are constants per step."""
    opened = request.getfixturevalue("pipeline") if family == "pixart" else request.getfixturevalue("unet")[0]
    denoiser = opened.split.denoiser
    assert denoiser.table is not None and denoiser.schedule is None
    assert any(TEMPORAL.search(site.name) for site in sites(denoiser.table))
    assert not any(TEMPORAL.search(site.name) for site in sites(denoiser.loop))


def test_temporal_features_that_mix_with_labels_run_once_per_prompt(dit: tuple[TorchPipeline, Statistics]) -> None:
    denoiser = dit[0].split.denoiser
    assert denoiser.schedule is not None
    assert any(TEMPORAL.search(site.name) for site in sites(denoiser.schedule))
    assert not any(TEMPORAL.search(site.name) for site in sites(denoiser.loop))


def _in_prelude(recipe: Recipe) -> Recipe:
    return replace(recipe, sections={**recipe.sections, "prelude": recipe.sections["denoiser"]})


def _unknown_unit(recipe: Recipe) -> Recipe:
    section = replace(recipe.sections["denoiser"], reconstruction=ReconstructionSpec(unit="model"))
    return replace(recipe, sections={"denoiser": section})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_in_prelude, "recipe learned: prelude: reconstruction: .*samples are kept of what enters the loop alone"),
        (_unknown_unit, "recipe learned: denoiser: reconstruction: unit: .*layer or half-block or block.*'model'"),
    ],
)
def test_bad_sections(
    change: Callable[[Recipe], Recipe], message: str, pipeline: TorchPipeline, statistics: Statistics, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        refine(pipeline, change(_recipe()), statistics, Scratch(tmp_path))


def test_learned_codes_can_be_read_again(pipeline: TorchPipeline, statistics: Statistics, tmp_path: Path) -> None:
    """They are kept in files, one tensor at a time."""
    from dexport.exporter.quantization import treatments_of
    from dexport.passes.quantization.decide import decide

    recipe, loop = _recipe(iterations=2), pipeline.split.denoiser.loop
    scratch = Scratch(tmp_path)
    treatments = treatments_of(loop, recipe.sections["denoiser"], (), "test")
    decisions = decide(loop, treatments, statistics.components[loop.name], scratch)
    learned = refine(pipeline, recipe, statistics, scratch)(loop, decisions)
    for name, values in learned.values.items():
        codes = quantized_weight(values.parts[0]).codes
        assert codes.dtype is torch.int8 and codes.shape == decisions.values[name].parts[0].codes.shape
        assert int((codes - quantized_weight(decisions.values[name].parts[0]).codes).abs().max()) <= 1
