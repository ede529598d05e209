"""Every family from a pipeline directory to a bundle to pixels, beside diffusers from the same seed (untrained, tiny, fp32)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dexport.exporter.build import build
from dexport.exporter.options import BuildOptions
from dexport.runtime.pipeline import load
from dexport.runtime.selftest import relative_error, selftest
from tests.pipelines import tiny_dit, tiny_sd3, tiny_sdxl, tiny_stable_diffusion
from tests.pipelines_flow import save_flux, save_wan
from tests.pipelines_pixart import tiny_pixart

STEPS, SEED = 4, 3
PROMPT = {"prompt": "a red circle"}

Case = tuple[Callable[[Path], Path], tuple[int, int], dict[str, Any], dict[str, Any], dict[str, Any]]
CASES: dict[str, Case] = {  # writer, size, build options, condition, what only diffusers is told
    "pixart": (tiny_pixart, (16, 16), {}, PROMPT | {"negative_prompt": "blue"}, {"use_resolution_binning": False, "clean_caption": False}),
    "dit": (tiny_dit, (32, 32), {}, {"class_labels": [1]}, {}),
    "stable-diffusion": (tiny_stable_diffusion, (64, 64), {}, PROMPT | {"negative_prompt": "blue"}, {}),
    "stable-diffusion-xl": (tiny_sdxl, (64, 64), {}, PROMPT, {}),
    "stable-diffusion-3": (tiny_sd3, (32, 32), {}, PROMPT, {}),
    "flux": (save_flux, (32, 32), {}, PROMPT, {}),
    "wan": (save_wan, (32, 32), {"frames": 9}, PROMPT, {"num_frames": 9}),
}


def diffusers_pixels(directory: Path, size: tuple[int, int], condition: dict[str, Any], extra: dict[str, Any]) -> np.ndarray:
    """8-bit pixels of diffusers: [pictures, H, W, 3], or [pictures, frames, H, W, 3]."""
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(directory)
    pipeline.set_progress_bar_config(disable=True)
    shape = {} if "class_labels" in condition else {"height": size[0], "width": size[1]}
    generator = torch.Generator("cpu").manual_seed(SEED)
    output = pipeline(**condition, **shape, **extra, num_inference_steps=STEPS, generator=generator, output_type="np")
    pixels = output.frames if hasattr(output, "frames") else output.images
    return np.round(np.asarray(pixels) * 255).astype(np.uint8)


@pytest.mark.parametrize("family", CASES)
def test_family_from_directory_to_pixels(family: str, tmp_path: Path) -> None:
    write, size, options, condition, extra = CASES[family]
    directory = write(tmp_path / "model")
    bundle = build(BuildOptions(model=str(directory), target="cpu", sizes=(size,), steps=(STEPS,), **options), tmp_path / "bundle.dxb")
    expected = diffusers_pixels(directory, size, condition, extra)
    with load(bundle) as pipeline:
        assert pipeline.bundle.manifest.family == family
        output = pipeline(**condition, seed=SEED, output_type="np")
        pixels = output.images if output.frames is None else output.frames
        assert pixels.shape == expected.shape
        assert expected.std() > 1, "a flat picture would prove nothing"
        assert relative_error(pixels, expected) <= 1e-3
        assert all(check.passed for check in selftest(pipeline.bundle))
        hoisting = pipeline.bundle.manifest.hoisting
        assert hoisting["loop_parameters"] < hoisting["parameters"]
