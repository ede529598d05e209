"""Wan: the tiny video pipeline's components, pieces, chunked decoder and whole run against diffusers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dexport.errors import UserError
from dexport.exporter.components import load_component
from dexport.exporter.pipelines.wan import open_pipeline
from dexport.exporter.text import tokenizer_json
from dexport.passes.graph import materialise, run
from dexport.passes.hoist import hoist
from tests.exporter.pipelines.checks import Captured, check_component, check_onnx, check_split, run_split
from tests.pipelines_flow import save_wan

SIZE, FRAMES = (16, 32), 9
COMPONENTS = ["text_encoder", "denoiser", "vae_split", "vae_first", "vae_next"]
PROMPTS = (
    "A Small  RED\t circle\n",
    "",
    "  ",
    "fox &amp;amp; caf&eacute; &#39;x&#x27; &lt;b> &notit; AT&T",
    "über — 😀 ﬁsh\u3000video",
    "the red cat " * 300,
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_wan(tmp_path_factory.mktemp("wan"))


@pytest.fixture(scope="module")
def case(directory: Path) -> Captured:
    from diffusers import DiffusionPipeline

    original = DiffusionPipeline.from_pretrained(directory)
    original.set_progress_bar_config(disable=True)
    pipeline = open_pipeline(directory, "WanPipeline", frames=FRAMES)
    components = {c.name: c for c in pipeline.components(SIZE, torch.float32)}
    graphs = {name: materialise(load_component(directory, c, torch.float32)) for name, c in components.items()}
    return Captured(original, pipeline, components, graphs, hoist(graphs["denoiser"]))


def _decoded(case: Captured, latent: torch.Tensor) -> torch.Tensor:
    """Runs the pipeline's decode calls over named buffers, as a program does: pixels ["batch", frames, H, W, 3]."""
    buffers = {"latent": latent}
    for call in case.pipeline.decode:
        graph = case.graphs[call.component]
        given = {port.name: buffers[name] for port, name in zip(graph.inputs, call.inputs, strict=True)}
        produced = run(graph, given)
        buffers |= {name: produced[port.name] for port, name in zip(graph.outputs, call.outputs, strict=True)}
    return torch.cat([buffers[name] for name in case.pipeline.results], dim=1)


@pytest.mark.parametrize("name", COMPONENTS)
def test_captured_component_equals_diffusers(case: Captured, name: str) -> None:
    check_component(case, name)


def test_split_denoiser_equals_whole(case: Captured) -> None:
    check_split(case)


def test_modulations_and_prompt_leave_the_loop(case: Captured) -> None:
    assert case.split.table is not None and case.split.schedule is None and case.split.prompt is not None
    assert not any("condition_embedder" in name or "attn2.to_k" in name or "attn2.to_v" in name for name in case.split.loop.used_weights())


def test_pieces_run_in_onnxruntime(case: Captured, tmp_path: Path) -> None:
    check_onnx(case, tmp_path)


@pytest.mark.parametrize("batch", [1, 2])
def test_chunked_decoder_equals_the_whole_one(case: Captured, batch: int) -> None:
    latent = torch.randn(batch, *case.pipeline.latent_shape(SIZE), generator=torch.Generator().manual_seed(3))
    config = case.original.vae.config
    mean, deviation = (torch.tensor(values).reshape(1, -1, 1, 1, 1) for values in (config.latents_mean, config.latents_std))
    with torch.no_grad():
        video = case.original.vae.decode(latent * deviation + mean, return_dict=False)[0]
    wanted = (video * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 4, 1) * 255
    got = _decoded(case, latent)
    assert got.shape == (batch, FRAMES, *SIZE, 3) and got.dtype is torch.uint8
    assert float((got - wanted).abs().max()) < 0.51


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_whole_run_equals_diffusers(case: Captured, guidance: float) -> None:
    noise = torch.randn(1, *case.pipeline.latent_shape(SIZE), generator=torch.Generator().manual_seed(5))
    prompts = ["blue and low quality", "a Red  cat"]  # unconditional first
    text = case.pipeline.texts[0]
    cleaned = [" ".join(prompt.split()) for prompt in prompts]
    encoded = case.original.tokenizer(cleaned, padding="max_length", max_length=text.length, truncation=True, return_tensors="pt")
    values = {"input_ids": encoded.input_ids, "attention_mask": encoded.attention_mask}
    values |= run(case.graphs["text_encoder"], values)
    scheduler = type(case.original.scheduler).from_config(case.original.scheduler.config)
    scheduler.set_timesteps(3, **case.pipeline.schedule_arguments(SIZE, 3))
    latent = noise
    for step, timestep in enumerate(scheduler.timesteps):
        both = run_split(case.split, {**values, "latent": latent.repeat(2, 1, 1, 1, 1)}, scheduler.timesteps, step)["model_output"]
        unconditional, conditional = both.chunk(2)
        velocity = unconditional + guidance * (conditional - unconditional)
        latent = scheduler.step(velocity, timestep, latent, return_dict=False)[0]
    size = {"height": SIZE[0], "width": SIZE[1], "num_frames": FRAMES}
    frames = case.original(
        prompts[1], negative_prompt=prompts[0], latents=noise, num_inference_steps=3, guidance_scale=guidance, output_type="np", **size
    ).frames
    assert np.abs(_decoded(case, latent).numpy() / 255.0 - frames).max() < 0.6 / 255


def test_what_the_adapter_declares(case: Captured, directory: Path) -> None:
    assert case.pipeline.guidance.kind == "classifier-free" and case.pipeline.latent_shape(SIZE) == (4, 3, 4, 8)
    assert case.pipeline.size_multiple == 8 and case.pipeline.frames == FRAMES
    whole = open_pipeline(directory, "WanPipeline")
    assert whole.frames == 81 and whole.results[-1] == "pixels_20" and [c.component for c in whole.decode[:3]] == COMPONENTS[2:]


def test_an_impossible_number_of_frames_is_refused(directory: Path) -> None:
    with pytest.raises(UserError, match=r"frames: expected one more than a multiple of 4, got 80; ask for 81 or 85"):
        open_pipeline(directory, "WanPipeline", frames=80)


@pytest.mark.parametrize("change", [{"boundary_ratio": 0.9}, {"transformer_2": ["diffusers", "WanTransformer3DModel"]}])
def test_two_experts_are_refused(tmp_path: Path, directory: Path, change: dict[str, object]) -> None:
    index = json.loads((directory / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps(index | change))
    with pytest.raises(UserError, match=r"expected one denoiser, got two experts"):
        open_pipeline(tmp_path, "WanPipeline")


def test_token_ids_equal_the_originals(case: Captured, directory: Path) -> None:
    from diffusers.pipelines.wan.pipeline_wan import prompt_clean
    from tokenizers import Tokenizer

    text = case.pipeline.texts[0]
    tokenizer = Tokenizer.from_str(tokenizer_json(directory, text))
    for prompt in PROMPTS:
        wanted = case.original.tokenizer(prompt_clean(prompt), padding="max_length", max_length=text.length, truncation=True)
        got = tokenizer.encode(prompt)
        assert (got.ids, got.attention_mask) == (wanted.input_ids, wanted.attention_mask), prompt
