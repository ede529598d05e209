"""FLUX: the tiny pipeline's components, pieces and whole run against diffusers."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dexport.exporter.components import load_component
from dexport.exporter.pipelines import open_directory
from dexport.exporter.text import tokenizer_json
from dexport.passes.graph import materialise, run
from dexport.passes.hoist import hoist
from tests.exporter.pipelines.checks import Captured, check_component, check_onnx, check_split, distance, run_split
from tests.pipelines_flow import save_flux

SIZE = (16, 32)
COMPONENTS = ("text_encoder", "text_encoder_2", "denoiser", "vae_decoder")
PROMPTS = ("a Small  RED circle", "x", "", "café — 😀 &amp; <b>", "the red cat " * 300)


def _captured(directory: Path, *names: str) -> Captured:
    """The pipeline and the graphs of the components named."""
    from diffusers import DiffusionPipeline

    original = DiffusionPipeline.from_pretrained(directory)
    original.set_progress_bar_config(disable=True)
    pipeline = open_directory(directory)
    components = {c.name: c for c in pipeline.components(SIZE, torch.float32) if c.name in names}
    graphs = {name: materialise(load_component(directory, c, torch.float32)) for name, c in components.items()}
    return Captured(original, pipeline, components, graphs, hoist(graphs["denoiser"]))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_flux(tmp_path_factory.mktemp("flux"))


@pytest.fixture(scope="module")
def case(directory: Path) -> Captured:
    return _captured(directory, *COMPONENTS)


@pytest.fixture(scope="module")
def schnell(tmp_path_factory: pytest.TempPathFactory) -> Captured:
    return _captured(save_flux(tmp_path_factory.mktemp("schnell"), guidance_embeds=False), "denoiser")


@pytest.mark.parametrize("name", COMPONENTS)
def test_captured_component_equals_diffusers(case: Captured, name: str) -> None:
    check_component(case, name)


def test_denoiser_packs_as_the_pipeline_does(directory: Path, case: Captured) -> None:
    from diffusers import FluxPipeline, FluxTransformer2DModel

    model = FluxTransformer2DModel.from_pretrained(directory / "transformer")
    latent, prompt, pooled = torch.randn(2, 2, 8, 16), torch.randn(2, 512, 32), torch.randn(2, 32)
    timestep, guidance = torch.tensor([730.0]), torch.tensor([3.5, 1.0])
    with torch.no_grad():
        packed = model(
            hidden_states=FluxPipeline._pack_latents(latent, 2, 2, 8, 16),
            timestep=timestep.expand(2) / 1000,
            guidance=guidance,
            pooled_projections=pooled,
            encoder_hidden_states=prompt,
            txt_ids=torch.zeros(512, 3),
            img_ids=FluxPipeline._prepare_latent_image_ids(2, 4, 8, "cpu", torch.float32),
            return_dict=False,
        )[0]
    wanted = FluxPipeline._unpack_latents(packed, 8, 16, 1)
    inputs = {"latent": latent, "timestep": timestep, "prompt_embeds": prompt, "pooled_prompt_embeds": pooled, "guidance": guidance}
    assert distance(run(case.graphs["denoiser"], inputs)["model_output"], wanted) < 1e-5


def test_split_denoiser_equals_whole(case: Captured, schnell: Captured) -> None:
    check_split(case)
    check_split(schnell)


def test_modulations_and_text_leave_the_loop(case: Captured) -> None:
    assert case.split.table is None and case.split.schedule is not None and case.split.prompt is not None
    assert not case.split.report.kept
    assert not any("norm1.linear" in name or "context_embedder" in name or "time_text" in name for name in case.split.loop.used_weights())


def test_pieces_run_in_onnxruntime(case: Captured, tmp_path: Path) -> None:
    check_onnx(case, tmp_path)


def test_whole_run_equals_diffusers(case: Captured) -> None:
    noise, prompt, steps = torch.randn(1, 2, 8, 16, generator=torch.Generator().manual_seed(5)), "a red cat", 3
    scheduler = type(case.original.scheduler).from_config(case.original.scheduler.config)
    scheduler.set_timesteps(**case.pipeline.schedule_arguments(SIZE, steps))
    values: dict[str, torch.Tensor] = {"guidance": torch.tensor([3.0])}
    for text, tokenizer in zip(case.pipeline.texts, (case.original.tokenizer, case.original.tokenizer_2), strict=True):
        encoded = tokenizer(prompt, padding="max_length", max_length=text.length, truncation=True, return_tensors="pt")
        values |= run(case.graphs[text.name], {text.ids: encoded.input_ids})
    latent = noise
    for step, timestep in enumerate(scheduler.timesteps):
        velocity = run_split(case.split, {**values, "latent": latent}, scheduler.timesteps, step)["model_output"]
        latent = scheduler.step(velocity, timestep, latent, return_dict=False)[0]
    got = run(case.graphs["vae_decoder"], {"latent": latent})["image"].numpy()
    packed = case.original._pack_latents(noise, 1, 2, 8, 16)
    size = {"height": SIZE[0], "width": SIZE[1]}
    images = case.original(prompt, latents=packed, num_inference_steps=steps, guidance_scale=3.0, output_type="np", **size).images
    assert np.abs(got / 255.0 - images).max() < 0.6 / 255


def test_what_the_adapter_declares(case: Captured, schnell: Captured) -> None:
    assert case.pipeline.guidance.kind == "embedded" and [r.buffer for r in case.pipeline.requests] == ["guidance"]
    assert schnell.pipeline.guidance.kind == "none" and not schnell.pipeline.requests
    assert [text.length for text in schnell.pipeline.texts] == [77, 256]
    assert case.pipeline.latent_shape((32, 64)) == (2, 16, 32) and case.pipeline.size_multiple == 4
    arguments = case.pipeline.schedule_arguments((1024, 512), 4)
    assert np.allclose(arguments["sigmas"], [1.0, 0.75, 0.5, 0.25]) and arguments["mu"] == pytest.approx(_mu(256 * 128))


def _mu(tokens: int) -> float:
    """The line through (256, 0.5) and (4096, 1.15)."""
    return 0.5 + (tokens - 256) * (1.15 - 0.5) / (4096 - 256)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_token_ids_equal_the_originals(case: Captured, directory: Path, prompt: str) -> None:
    from tokenizers import Tokenizer

    for text, original in zip(case.pipeline.texts, (case.original.tokenizer, case.original.tokenizer_2), strict=True):
        wanted = original(prompt, padding="max_length", max_length=text.length, truncation=True).input_ids
        assert Tokenizer.from_str(tokenizer_json(directory, text)).encode(prompt).ids == wanted
