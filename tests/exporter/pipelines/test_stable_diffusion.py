from pathlib import Path

import pytest
import torch

from dexport.errors import UserError
from dexport.exporter.components import load_component
from dexport.exporter.pipelines import open_directory
from dexport.passes.graph import Kind, run
from tests.exporter.pipelines.checks import Captured, captured, check_component, check_onnx, check_split, distance, example
from tests.exporter.pipelines.sampling import check_text, reference, sample
from tests.pipelines import edit_config, tiny_stable_diffusion


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Captured:
    return captured(tiny_stable_diffusion(tmp_path_factory.mktemp("sd")))


@pytest.mark.parametrize("name", ["text_encoder", "denoiser", "vae_decoder"])
def test_component_equals_diffusers(case: Captured, name: str) -> None:
    check_component(case, name)


def test_split_equals_whole(case: Captured) -> None:
    check_split(case)


def test_time_embeddings_and_cross_attention_keys_leave_the_loop(case: Captured) -> None:
    moved = case.split.report.moved
    assert any(m.kinds == {Kind.STEP} for m in moved)
    assert any(m.kinds == {Kind.PROMPT} for m in moved)
    assert case.split.report.kept == ()
    left = {name for name in case.split.loop.used_weights() if "time_emb" in name or "attn2.to_k" in name or "attn2.to_v" in name}
    assert left == set()


def test_onnx(case: Captured, tmp_path: Path) -> None:
    check_onnx(case, tmp_path)


def test_token_ids(case: Captured) -> None:
    check_text(case)


@pytest.mark.parametrize(("guidance", "negative"), [(7.5, None), (7.5, "the red"), (1.0, None)])
def test_picture_equals_diffusers(case: Captured, guidance: float, negative: str | None) -> None:
    arguments = {"steps": 3, "guidance": guidance, "seed": 5, "prompt": "A red cat"}
    wanted = reference(case, **arguments, negative_prompt=negative)
    assert distance(sample(case, **arguments, negative=negative), wanted) == 0


def test_defaults(case: Captured) -> None:
    pipeline = case.pipeline
    assert (pipeline.default_size, pipeline.size_multiple, pipeline.default_steps) == ((64, 64), 8, 50)
    assert (pipeline.guidance.kind, pipeline.guidance.default) == ("classifier-free", 7.5)


def test_a_size_that_does_not_halve_evenly(case: Captured) -> None:
    size = (24, 40)  # latents 12x20, in the lower level 6x10
    component = next(c for c in case.pipeline.components(size, torch.float32) if c.name == "denoiser")
    inputs = example(component, 2)
    with torch.no_grad():
        wanted = component.wrap(case.model("denoiser"))(*inputs.values())
    got = run(load_component(case.pipeline.directory, component, torch.float32), inputs)["model_output"]
    assert distance(got, wanted) < 1e-5


def test_distilled_guidance_is_an_input(tmp_path: Path) -> None:
    case = captured(tiny_stable_diffusion(tmp_path, time_cond_proj_dim=32))
    assert case.pipeline.guidance.kind == "embedded"
    arguments = {"steps": 2, "guidance": 7.5, "seed": 5, "prompt": "A red cat"}
    assert distance(sample(case, **arguments), reference(case, **arguments)) == 0


def test_a_denoiser_with_other_conditions_is_refused(tmp_path: Path) -> None:
    directory = tiny_stable_diffusion(tmp_path)
    edit_config(directory / "unet" / "config.json", class_embed_type="timestep")
    with pytest.raises(UserError, match="expected class_embed_type None, got timestep; build it with the pipeline class"):
        open_directory(directory)
