"""Layers that the kernel of a plugin does not have are named before anything is calibrated, or kept if the user says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dexport.errors import UserError
from dexport.exporter.options import BuildOptions
from dexport.exporter.plan import plan
from dexport.exporter.plugin_layers import keeping_misfits
from dexport.exporter.torch_pipeline import TorchPipeline

RECIPE = """
name: w4a4
summary: W4A4 in groups with a branch, which needs no calibration.
denoiser:
  ends: keep
  default:
    weights: {format: int4, granularity: block-64}
    activations: {format: int4, mode: dynamic, granularity: block-64}
    low_rank: {rank: 8}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "w4a4.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return str(path)


def test_layers_that_do_not_fit_are_named_or_kept(opened: TorchPipeline, recipe: str) -> None:
    """All layers of this pipeline are in fp32; most have 16 inputs as well."""
    options = BuildOptions(model=opened.plan.options.model, target="jetson-orin@jetpack-6.2", steps=(4,), recipe=recipe)
    with pytest.raises(UserError) as caught:
        keeping_misfits(plan(options), [opened.split])
    assert "jetson-orin@jetpack-6.2: recipe w4a4: expected layers in fp16 or bf16 with 64n inputs and 8n outputs" in str(caught.value)
    assert "(fp32)" in str(caught.value) and "more; add --allow-degrade to keep these in 16 bits, or --skip LAYER" in str(caught.value)

    allowed = plan(replace(options, allow_degrade=True))
    kept = keeping_misfits(allowed, [opened.split])
    assert "transformer_blocks.0.attn1.to_q" in kept.options.skip
    assert kept.recipe is not None and kept.recipe.degraded[-1].built == "16 bits"
    assert keeping_misfits(kept, [opened.split]) == kept

    other = plan(replace(options, recipe="int8"))
    assert keeping_misfits(other, [opened.split]) is other
