"""Sensitivities of what a recipe does: which layers, which choices, what is refused (the rest: tests/dexport/test_sensing.py)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dexport.errors import UserError
from dexport.exporter.recipe_sensitivity import recipe_sensitivity
from dexport.exporter.sensitivity_table import load_table
from dexport.exporter.torch_pipeline import TorchPipeline
from dexport.passes.quantization.scratch import Scratch
from dexport.passes.quantization.sites import ends, sites
from dexport.passes.quantization.statistics import Statistics
from tests.exporter.test_mixed_precision import OUTPUT, RECIPE


def test_sensitivity_of_a_recipe(opened: TorchPipeline, calibrated: Statistics, tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    table = recipe_sensitivity(opened, RECIPE, calibrated, OUTPUT, Scratch(tmp_path), path)
    loop = opened.split.denoiser.loop
    assert set(table.harms) == {site.name for site in sites(loop)} - ends(loop)
    assert table.choices() == ("w4", "w8") and load_table(path) == table
    plain = replace(RECIPE, sections={"denoiser": replace(RECIPE.sections["denoiser"], mixed_precision=None)})
    alone = recipe_sensitivity(opened, plain, calibrated, OUTPUT, Scratch(tmp_path))
    assert alone.choices() == ("mixed",)
    block = "transformer_blocks.0.attn1.to_q"
    assert alone.harms[block]["mixed"] == table.harms[block]["w4"]
    with pytest.raises(UserError, match="layers of the denoiser that it treats"):
        recipe_sensitivity(opened, replace(RECIPE, sections={}), calibrated, OUTPUT, Scratch(tmp_path))
