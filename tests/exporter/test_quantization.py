"""A recipe applied to every component of a pipeline: what changes, what is kept, what the manifest says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dexport.errors import UserError
from dexport.exporter.effective_recipe import EffectiveRecipe
from dexport.exporter.quality import measure
from dexport.exporter.quantization import QuantizedSplit, quantized_split, recipe_document
from dexport.exporter.torch_pipeline import TorchPipeline, torch_pipeline
from dexport.passes.quantization.recipe import AttentionSpec, Recipe, Section, Treatment, WeightSpec
from dexport.passes.quantization.recipe_file import find_recipe, read_recipe
from dexport.passes.quantization.scratch import Scratch
from dexport.passes.quantization.statistics import Statistics
from dexport.passes.quantization.step_table import QUANTIZATION_VALUES
from dexport.runtime.manifest import JsonObject

PROMPTS, SEEDS = ["a red circle", "a small star"], [1, 2]
BLOCKS = 2
LOOP_LINEARS = 8 * BLOCKS
CLOSE_DB = 25
"""PSNR of pictures that are still the same; the pipeline is untrained and its pictures are 16 pixels wide, so that 8 bits give about 30."""


def quantized(pipeline: TorchPipeline, recipe: Recipe, statistics: Statistics | None, folder: Path, **options: object) -> QuantizedSplit:
    return quantized_split(pipeline.split, recipe, statistics, Scratch(folder), **options)  # type: ignore[arg-type]


def picture_psnr(pipeline: TorchPipeline, found: QuantizedSplit) -> float:
    """Of the quantized pipeline against the other."""
    changed = torch_pipeline(pipeline.plan, found.split, pipeline.solver)
    before, after = pipeline.run(PROMPTS, SEEDS), changed.run(PROMPTS, SEEDS)
    return measure(before.pictures, after.pictures).psnr.median


@pytest.mark.parametrize("name", ["int8", "int8-table", "smoothquant", "vidit-q-w8a8", "fp8"])
def test_eight_bits_keep_the_pictures(name: str, opened: TorchPipeline, calibrated: Statistics, tmp_path: Path) -> None:
    found = quantized(opened, find_recipe(name), calibrated, tmp_path)
    assert picture_psnr(opened, found) > CLOSE_DB
    treated = [layer for layer in found.layers if layer.bits < 16]
    assert len(treated) == LOOP_LINEARS and {layer.component for layer in treated} == {"denoiser"}
    assert {layer.site for layer in found.layers if layer.bits >= 16} == {"pos_embed.proj", "proj_out"}


def test_attention_has_lines_of_its_own(opened: TorchPipeline, calibrated: Statistics, tmp_path: Path) -> None:
    """To itself and to the text in every block; `skip` keeps one of them as it keeps layers."""
    spec = AttentionSpec(format="e4m3", probabilities="e4m3")
    recipe = Recipe(name="x", summary="y", sections={"denoiser": Section(attention=spec)})
    kept = "transformer_blocks.1.attn2"
    found = quantized(opened, recipe, calibrated, tmp_path, skip=[kept])
    lines = {layer.site: layer for layer in found.layers if not layer.parameters}
    assert set(lines) == {f"transformer_blocks.{i}.attn{k}" for i in range(BLOCKS) for k in (1, 2)}
    assert lines.pop(kept).note == "the user keeps it"
    assert {(line.weights, line.activations, line.bits, line.note) for line in lines.values()} == {("attention without", "e4m3", 0.0, "")}
    assert found.treated_bits("denoiser") is None and found.average_bits("denoiser") == 16
    assert picture_psnr(opened, found) > CLOSE_DB


def test_more_bits_are_closer(opened: TorchPipeline, calibrated: Statistics, tmp_path: Path) -> None:
    def error(bits: int) -> float:
        text = f"name: x\nsummary: y\ndenoiser: {{default: {{weights: {{format: int{bits}}}}}}}"
        found = quantized(opened, read_recipe(text, "x"), calibrated, tmp_path)
        before = opened.run(PROMPTS, SEEDS).latents[-1]
        return float(np.abs(torch_pipeline(opened.plan, found.split, opened.solver).run(PROMPTS, SEEDS).latents[-1] - before).mean())

    errors = [error(bits) for bits in (8, 6, 4, 2)]
    assert errors == sorted(errors)


def test_a_table_comes_in_with_the_step_values(opened: TorchPipeline, calibrated: Statistics, tmp_path: Path) -> None:
    found = quantized(opened, find_recipe("int8-table"), calibrated, tmp_path)
    changed = torch_pipeline(opened.plan, found.split, opened.solver)
    values = changed.tables[QUANTIZATION_VALUES]
    assert values.shape[0] == 4 and values.shape[1] > 0
    assert [p.name for p in found.split.denoiser.loop.inputs][-1] == QUANTIZATION_VALUES
    assert not np.allclose(values[0], values[-1])  # steps differ


def test_every_part_of_a_pipeline_has_its_section(opened: TorchPipeline, calibrated: Statistics, tmp_path: Path) -> None:
    treatment = Section(default=Treatment(weights=WeightSpec(format="int8")))
    every = Recipe(name="x", summary="y", sections=dict.fromkeys(("denoiser", "prelude", "text_encoder", "vae"), treatment))
    found = quantized(opened, every, None, tmp_path)
    assert {layer.component for layer in found.layers if layer.bits < 16} == set(opened.graphs)
    assert picture_psnr(opened, found) > CLOSE_DB


def test_skipped_layers_keep_their_weights(opened: TorchPipeline, calibrated: Statistics, tmp_path: Path) -> None:
    found = quantized(opened, find_recipe("int8"), calibrated, tmp_path, skip=("re:ff", "transformer_blocks.0.attn1.to_q"))
    kept = {layer.site for layer in found.layers if layer.bits >= 16}
    assert {"transformer_blocks.0.ff.net.2", "transformer_blocks.0.attn1.to_q"} <= kept and "transformer_blocks.1.attn1.to_q" not in kept


@pytest.mark.parametrize("pattern", ["nothing", "re:nothing"])
def test_a_skip_that_matches_nothing_is_refused(pattern: str, opened: TorchPipeline, calibrated: Statistics, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"--skip {pattern}: expected a layer that it matches, got none; layers are named like"):
        quantized(opened, find_recipe("int8"), calibrated, tmp_path, skip=(pattern,))


def test_statistics_are_asked_for(opened: TorchPipeline, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="recipe int8: expected statistics, got none; calibrate first"):
        quantized(opened, find_recipe("int8"), None, tmp_path)
    assert quantized(opened, find_recipe("vidit-q-w8a8"), None, tmp_path).layers


def test_bits_count_scales_and_kept_layers(opened: TorchPipeline, calibrated: Statistics, tmp_path: Path) -> None:
    found = quantized(opened, find_recipe("vidit-q-w8a8"), None, tmp_path)
    layers = {layer.site: layer for layer in found.layers}
    query = layers["transformer_blocks.0.attn1.to_q"]
    inputs = query.parameters // 16
    assert query.bits == 8 + 32 / inputs
    total = sum(layer.parameters for layer in found.layers)
    assert found.average_bits("denoiser") == pytest.approx(sum(layer.bits * layer.parameters for layer in found.layers) / total)
    treated = found.treated_bits("denoiser")
    assert treated is not None and treated < (found.average_bits("denoiser") or 0)
    assert found.average_bits("vae_decoder") is None
    assert found.weight_bytes("denoiser") == round(sum(layer.bits * layer.parameters for layer in found.layers) / 8)


def test_the_document_names_every_layer(opened: TorchPipeline, calibrated: Statistics, tmp_path: Path) -> None:
    recipe = find_recipe("int8")
    document: JsonObject = recipe_document(EffectiveRecipe(recipe, ()), quantized(opened, recipe, calibrated, tmp_path))
    assert document["name"] == "int8" and document["sections"] == {"denoiser": "int8 channel weights, int8 static tensor activations"}
    assert len(document["layers"]) == LOOP_LINEARS + 2
    assert document["layers"][0]["note"] == "the recipe keeps it"
