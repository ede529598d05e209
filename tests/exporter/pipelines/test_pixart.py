"""PixArt component by component, and what hoisting makes of its denoiser."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dexport.exporter.components import load_component
from dexport.exporter.pipelines import open_directory
from dexport.passes.graph import Kind, run
from dexport.passes.hoist import HoistReport
from tests.exporter.pipelines.checks import Captured, check_component, check_onnx, check_split, distance, example
from tests.pipelines_pixart import tiny_pixart

_GOLDEN = Path(__file__).parents[2] / "golden" / "hoist_pixart.txt"


@pytest.fixture
def case(pixart_captured: Captured) -> Captured:
    return pixart_captured


@pytest.mark.parametrize("name", ["text_encoder", "denoiser", "vae_decoder"])
def test_components_are_those_of_diffusers(case: Captured, name: str) -> None:
    check_component(case, name)


def test_the_split_denoiser_is_the_whole(case: Captured) -> None:
    check_split(case)


def test_onnx_runtime_computes_the_same(case: Captured, tmp_path: Path) -> None:
    check_onnx(case, tmp_path)


def test_what_leaves_the_loop(case: Captured, update_golden: bool) -> None:
    text = _described(case.split.report)
    if update_golden:
        _GOLDEN.write_text(text)
    assert text == _GOLDEN.read_text(), "run pytest --update-golden and read the difference"


def _described(report: HoistReport) -> str:
    lines = [f"parameters {report.parameters}, in the loop {report.loop_parameters}"]
    for moved in report.moved:
        kinds = " and ".join(kind.value for kind in Kind if kind in moved.kinds)
        lines.append(f"moved {moved.node} [{', '.join(map(str, moved.shape))}]: depends on {kinds}")
    lines += [f"kept  {kept.node}: {kept.reason}" for kept in report.kept]
    return "\n".join(lines) + "\n"


def test_the_pipelines_facts(case: Captured) -> None:
    pipeline = case.pipeline
    assert (pipeline.family, pipeline.class_name, pipeline.default_size) == ("pixart", "PixArtAlphaPipeline", (16, 16))
    assert (pipeline.size_multiple, pipeline.latent_shape((16, 24)), pipeline.guidance.default) == (4, (4, 8, 12), 4.5)
    assert [(t.length, t.clean) for t in pipeline.texts] == [(120, ("lower", "strip"))]


def test_a_model_that_hears_its_size(tmp_path: Path) -> None:
    """The released 1024 pixel models embed the resolution and the aspect ratio, which are constants here."""
    directory = tiny_pixart(tmp_path, use_additional_conditions=True, attention_head_dim=12, cross_attention_dim=24)
    pipeline = open_directory(directory)
    component = next(c for c in pipeline.components((16, 24), torch.float32) if c.name == "denoiser")
    graph = load_component(directory, component, torch.float32)
    from diffusers import PixArtTransformer2DModel

    model = PixArtTransformer2DModel.from_pretrained(directory / "transformer")
    inputs = example(component, 2)
    sizes = {"resolution": torch.tensor([[16.0, 24.0]] * 2), "aspect_ratio": torch.tensor([[16 / 24]] * 2)}
    with torch.no_grad():
        wanted = model(
            inputs["latent"],
            encoder_hidden_states=inputs["prompt_embeds"],
            encoder_attention_mask=inputs["attention_mask"],
            timestep=inputs["timestep"].expand(2),
            added_cond_kwargs=sizes,
            return_dict=False,
        )[0]
    assert distance(run(graph, inputs)["model_output"], wanted[:, :4]) < 1e-5
