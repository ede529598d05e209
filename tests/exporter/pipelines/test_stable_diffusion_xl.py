from pathlib import Path

import pytest
import torch

from dexport.exporter.components import load_component
from dexport.passes.graph import Kind, run
from tests.exporter.pipelines.checks import Captured, captured, check_onnx, check_split, distance, example
from tests.exporter.pipelines.sampling import check_text, reference, sample
from tests.pipelines import edit_config, tiny_sdxl


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Captured:
    return captured(tiny_sdxl(tmp_path_factory.mktemp("sdxl")))


def test_text_encoders_equal_diffusers(case: Captured) -> None:
    ids = torch.randint(0, 500, (3, 77), generator=torch.Generator().manual_seed(0))
    for name, buffer in (("text_encoder", "input_ids"), ("text_encoder_2", "input_ids_2")):
        with torch.no_grad():
            wanted = case.model(name)(ids, output_hidden_states=True)
        got = run(case.graphs[name], {buffer: ids})
        hidden, *pooled = got.values()
        assert distance(hidden, wanted.hidden_states[-2]) < 1e-5
        assert all(distance(p, wanted.text_embeds) < 1e-5 for p in pooled)


def test_denoiser_equals_diffusers(case: Captured) -> None:
    for batch in (1, 2, 3):
        inputs = example(case.components["denoiser"], batch)
        given = inputs["given"][:, None]
        prompt = torch.cat([inputs["prompt_embeds"], inputs["prompt_embeds_2"]], dim=-1) * given[:, :, None]
        size = torch.tensor([64.0, 64.0, 0.0, 0.0, 64.0, 64.0]).expand(batch, 6)
        added = {"text_embeds": inputs["pooled_embeds"] * given, "time_ids": size}
        with torch.no_grad():
            model = case.original.unet
            wanted = model(inputs["latent"], inputs["timestep"], encoder_hidden_states=prompt, added_cond_kwargs=added).sample
        assert distance(run(case.graphs["denoiser"], inputs)["model_output"], wanted) < 1e-5


def test_split_equals_whole(case: Captured) -> None:
    check_split(case)


def test_what_time_and_prompt_make_leaves_the_loop(case: Captured) -> None:
    assert any(m.kinds == {Kind.STEP, Kind.PROMPT} for m in case.split.report.moved)
    assert case.split.report.kept == ()
    left = {name for name in case.split.loop.used_weights() if any(part in name for part in ("_emb", "attn2.to_k", "attn2.to_v"))}
    assert left == set()


def test_onnx(case: Captured, tmp_path: Path) -> None:
    check_onnx(case, tmp_path)


def test_token_ids(case: Captured) -> None:
    check_text(case)


def test_the_second_tokenizer_pads_with_an_exclamation_mark(case: Captured) -> None:
    assert case.original.tokenizer_2("the cat", padding="max_length", max_length=77).input_ids[-1] == 0


@pytest.mark.parametrize(("guidance", "negative"), [(5.0, None), (5.0, ""), (1.0, None)])
def test_picture_equals_diffusers(case: Captured, guidance: float, negative: str | None) -> None:
    """Without a negative prompt the unconditional embeddings are zeros; with an empty one they are those of the empty text."""
    arguments = {"steps": 3, "guidance": guidance, "seed": 5, "prompt": "A red cat"}
    wanted = reference(case, **arguments, negative_prompt=negative)
    assert distance(sample(case, **arguments, negative=negative), wanted) == 0


def test_defaults(case: Captured) -> None:
    pipeline = case.pipeline
    assert (pipeline.default_size, pipeline.size_multiple, pipeline.default_steps) == ((64, 64), 8, 50)
    assert (pipeline.guidance.kind, pipeline.guidance.default) == ("classifier-free", 5.0)


def test_the_vae_is_wide_in_half_precision(case: Captured) -> None:
    decoder = next(c for c in case.pipeline.components((64, 64), torch.float16) if c.name == "vae_decoder")
    assert decoder.wide and decoder.inputs[0].dtype is torch.float32


def test_latent_statistics_of_the_vae_are_applied(case: Captured, tmp_path: Path) -> None:
    directory = tiny_sdxl(tmp_path)
    edit_config(directory / "vae" / "config.json", latents_mean=[-1.5, 0.5, 1.0, 0.25], latents_std=[2.0, 1.5, 0.5, 3.0])
    from dexport.exporter.pipelines import open_directory

    component = next(c for c in open_directory(directory).components((64, 64), torch.float32) if c.name == "vae_decoder")
    latent = example(component, 1)["latent"]
    vae = case.original.vae
    mean, deviation = (torch.tensor(v).reshape(1, 4, 1, 1) for v in ([-1.5, 0.5, 1.0, 0.25], [2.0, 1.5, 0.5, 3.0]))
    with torch.no_grad():
        pixels = vae.decode(latent * deviation / vae.config.scaling_factor + mean).sample
    wanted = ((pixels / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1) * 255).round().to(torch.uint8)
    assert distance(run(load_component(directory, component, torch.float32), {"latent": latent})["image"], wanted) == 0
