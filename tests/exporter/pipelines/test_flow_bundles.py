"""FLUX and Wan from directory to bundle to pictures: what diffusers gives for the same seed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dexport.errors import UserError
from dexport.exporter.build import build
from dexport.exporter.options import BuildOptions
from dexport.runtime.pipeline import load
from tests.pipelines_flow import save_flux, save_wan

SIZE, SEED = (16, 32), 11


def _options(directory: Path, **changes: object) -> BuildOptions:
    settings: dict[str, object] = {"precision": "fp32", "sizes": (SIZE,), "steps": (3,), "golden": "none", "batch": 2, **changes}
    return BuildOptions(model=str(directory), target="onnxruntime-cpu", **settings)  # type: ignore[arg-type]


def _original(directory: Path) -> object:
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(directory)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _largest_difference(pixels: np.ndarray, wanted: np.ndarray) -> float:
    """In 255ths; `wanted` lies in 0..1."""
    assert pixels.shape == wanted.shape and pixels.dtype == np.uint8 and wanted.std() > 0.02
    return float(np.abs(pixels - wanted * 255.0).max())


def test_flux_with_a_lora(tmp_path: Path) -> None:
    directory = save_flux(tmp_path / "pipeline")
    name = "transformer_blocks.1.attn.to_q"
    up, down = torch.randn(32, 4), torch.randn(4, 32)
    save_file({f"transformer.{name}.lora_A.weight": down, f"transformer.{name}.lora_B.weight": up}, tmp_path / "style.safetensors")
    options = _options(directory, loras=(f"{tmp_path / 'style.safetensors'}:0.5",))
    prompts = ["A red  cat", "über the \U0001f408 &amp;"]
    with load(build(options, tmp_path / "bundle")) as pipeline:
        got = np.asarray(pipeline(prompts, seed=SEED, guidance_scale=2.5, output_type="np").images)
    original = _original(directory)
    settings = {"height": SIZE[0], "width": SIZE[1], "num_inference_steps": 3, "guidance_scale": 2.5, "output_type": "np"}
    plain = original(prompts, generator=torch.Generator().manual_seed(SEED), **settings).images  # type: ignore[operator]
    with torch.no_grad():
        original.transformer.get_submodule(name).weight += 0.5 * up @ down  # type: ignore[attr-defined]
    wanted = original(prompts, generator=torch.Generator().manual_seed(SEED), **settings).images  # type: ignore[operator]
    assert _largest_difference(got, wanted) < 0.6 < _largest_difference(got, plain)


@pytest.mark.parametrize("guidance", [1.0, 6.0])
def test_wan(wan_bundle: tuple[Path, Path], guidance: float) -> None:
    directory, bundle = wan_bundle
    with load(bundle) as pipeline:
        output = pipeline(
            "The quick &lt;b&gt;  fox", negative_prompt="blurred\n video", seed=SEED, guidance_scale=guidance, output_type="np"
        )
    wanted = _original(directory)(  # type: ignore[operator]
        "The quick &lt;b&gt;  fox",
        negative_prompt="blurred\n video",
        height=SIZE[0],
        width=SIZE[1],
        num_frames=9,
        num_inference_steps=3,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(SEED),
        output_type="np",
    ).frames
    assert output.frames is not None
    assert _largest_difference(output.frames, wanted) < 0.6


@pytest.fixture(scope="module")
def wan_bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("wan")
    directory = save_wan(folder / "pipeline")
    return directory, build(_options(directory, frames=9), folder / "bundle")


def test_frames_of_a_picture_pipeline_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"frames: expected none for a pipeline that makes pictures, got 9 for FluxPipeline"):
        build(_options(save_flux(tmp_path / "pipeline"), frames=9), tmp_path / "bundle")
