"""A checkpoint of ModelOpt in the place of a recipe: from the file to the bundle, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from dexport.errors import UserError
from dexport.exporter.build import build
from dexport.exporter.build_recipe import QuantizedBuild, apply_recipe
from dexport.exporter.effective_recipe import EffectiveRecipe, effective_recipe
from dexport.exporter.modelopt_checkpoint import open_modelopt
from dexport.exporter.options import BuildOptions
from dexport.exporter.plan import plan
from dexport.exporter.torch_pipeline import TorchPipeline
from dexport.exporter.weights import open_checkpoint
from dexport.passes.quantization.statistics import Statistics
from dexport.runtime.bundle import open_bundle
from dexport.runtime.selftest import selftest
from dexport.targets.catalogue import find
from tests.exporter import modelopt_files as files

STEPS = 4
CLOSE_DB = 25
"""PSNR of pictures that are still the same; the pipeline is untrained and its pictures are 16 pixels wide, so that 8 bits give about 30."""
AT_BUILD = ["adaln_single.emb.timestep_embedder.linear_1", "adaln_single.emb.timestep_embedder.linear_2", "adaln_single.linear"]


def weights_of(pipeline: Path) -> dict[str, torch.Tensor]:
    """Matrices and kernels of the denoiser by layer."""
    (file,) = (pipeline / "transformer").glob("*.safetensors")
    tensors = safetensors.torch.load_file(file)
    return {n.removesuffix(".weight"): t for n, t in tensors.items() if n.endswith(".weight") and t.dim() > 1}


def layers_of(weights: Mapping[str, torch.Tensor], seen: Statistics, configuration: files.Configuration) -> dict[str, files.Quantized]:
    """Every layer quantized on what calibration saw; convolutions are not smoothed, as ModelOpt does not."""
    spans = {name: site.absmax.amax(0) for sites in seen.components.values() for name, site in sites.items()}
    found = {}
    for name, weight in weights.items():
        span = spans.get(name, torch.full((weight.shape[1],), 4.0)).clamp(min=1e-3)
        found[name] = files.quantized(weight, span, configuration if weight.dim() == 2 else files.INT8)
    return found


@pytest.fixture(scope="module")
def smoothed(pixart: Path, calibrated: Statistics, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline's denoiser, all layers INT8 with SmoothQuant."""
    found = layers_of(weights_of(pixart), calibrated, files.SMOOTHQUANT)
    return files.save(tmp_path_factory.mktemp("modelopt") / "smoothed.pth", found)


def applied(opened: TorchPipeline, checkpoint: Path, scratch: Path, **options: Any) -> QuantizedBuild:
    """The checkpoint applied to the graphs of the opened pipeline."""
    given = {"target": "cpu", "steps": (STEPS,), "quality_prompts": 0, "modelopt": str(checkpoint)} | options
    split = opened.split
    decided = plan(BuildOptions(**{"model": opened.plan.options.model} | given))
    return apply_recipe(decided, [split], {(split.size, STEPS): opened.solver}, scratch, lambda stage, done: None)


def treated(found: QuantizedBuild) -> dict[str, set[str]]:
    """Component -> its quantized layers."""
    quantized = [layer for layer in found.sizes[0].layers if layer.bits < 16]
    return {name: {layer.site for layer in quantized if layer.component == name} for name in {layer.component for layer in quantized}}


def test_a_bundle_with_its_values_makes_the_same_pictures(pixart: Path, smoothed: Path, tmp_path: Path) -> None:
    options = BuildOptions(
        model=str(pixart),
        target="onnxruntime-cpu",
        steps=(STEPS,),
        guidance=3.0,
        modelopt=str(smoothed),
        quality_prompts=2,
        min_psnr=CLOSE_DB,
    )
    bundle = open_bundle(build(options, tmp_path / "modelopt.dxb"))
    recipe, quality = bundle.manifest.recipe, bundle.manifest.quality
    assert recipe is not None and recipe["name"] == "modelopt" and "as NVIDIA ModelOpt quantized them" in recipe["summary"]
    count = len(weights_of(pixart))
    assert sum(layer["bits"] < 16 for layer in recipe["layers"]) == count - len(AT_BUILD)
    int8 = "int8 channel weights, int8 static tensor activations"
    assert recipe["sections"]["denoiser"] == f"{count - 1} x {int8}, balanced | 1 x {int8}"
    assert recipe["computed at build"] == AT_BUILD and recipe["not taken over"] == []
    assert 8 < recipe["average_bits"]["denoiser"] < 12  # a scale weighs much beside 16 inputs
    assert quality is not None and quality["psnr"]["median"] > CLOSE_DB
    assert all(check.passed for check in selftest(bundle))
    page = bundle.read_bytes("report/index.html").decode()
    assert "modelopt" in page and "Not quantized, because only their results are stored" in page


def test_preludes_are_quantized_too_unless_they_are_kept(opened: TorchPipeline, smoothed: Path, tmp_path: Path) -> None:
    whole = treated(applied(opened, smoothed, tmp_path))
    assert whole.keys() == {"denoiser", "denoiser_prompt"} and "caption_projection.linear_1" in whole["denoiser_prompt"]
    kept = applied(opened, smoothed, tmp_path, parts={"prelude": "keep"}, skip=("re:ff",))
    assert treated(kept) == {"denoiser": {name for name in whole["denoiser"] if "ff" not in name}}
    assert {layer.note for layer in kept.sizes[0].layers if "ff" in layer.site} == {"it was asked to be kept"}


def test_layers_that_it_leaves_alone_keep_the_weights_of_the_pipeline(
    pixart: Path, opened: TorchPipeline, calibrated: Statistics, tmp_path: Path
) -> None:
    some = {name: weight for name, weight in weights_of(pixart).items() if name.endswith("to_q")}
    path = files.save(tmp_path / "some.pth", layers_of(some, calibrated, files.INT8))
    found = applied(opened, path, tmp_path)
    assert set().union(*treated(found).values()) == set(some)
    assert {layer.note for layer in found.sizes[0].layers if layer.bits >= 16} == {"the checkpoint does not quantize it"}
    loop = found.sizes[0].split.denoiser.loop
    assert torch.equal(loop.weights["model.proj_out.weight"].load(), weights_of(pixart)["proj_out"])


def test_another_part_can_have_a_recipe(opened: TorchPipeline, smoothed: Path, tmp_path: Path) -> None:
    found = applied(opened, smoothed, tmp_path, parts={"text_encoder": "int4-weight-only"})
    assert treated(found).keys() == {"denoiser", "denoiser_prompt", "text_encoder"}


@pytest.mark.parametrize("change", ["name", "shape", "weight"])
def test_a_checkpoint_of_another_model_is_refused_by_its_first_layer(
    change: str, pixart: Path, calibrated: Statistics, tmp_path: Path
) -> None:
    weights = weights_of(pixart)
    first, second = list(weights)[:2]
    if change == "name":
        weights = {first: weights[first], "blocks.0.q": weights[second]}
        message = "blocks.0.q: expected a layer of its name, as in .*transformer, got none; give the checkpoint that was quantized from"
    elif change == "shape":
        weights[second] = torch.ones(3, 5)
        message = f"{second}: expected a weight .*x.*, as in .*transformer, got 3x5"
    else:
        weights[second] = torch.randn(weights[second].shape, generator=torch.Generator().manual_seed(9)) * weights[second].std()
        message = rf"{second}: expected the same weight, as in .*transformer, got one that is 1\d\d% away from it"
    checkpoint = open_modelopt(str(files.save(tmp_path / "other.pth", layers_of(weights, calibrated, files.INT8))))
    folder = pixart / "transformer"
    with pytest.raises(UserError, match=message):
        checkpoint.check(open_checkpoint(folder), folder)


def test_its_own_checkpoint_is_taken(pixart: Path, calibrated: Statistics, tmp_path: Path) -> None:
    layers = layers_of(weights_of(pixart), calibrated, files.SVDQUANT)
    folder = pixart / "transformer"
    open_modelopt(str(files.save(tmp_path / "own.pth", layers))).check(open_checkpoint(folder), folder)


def effective(target: str, path: Path, **options: Any) -> EffectiveRecipe:
    found = effective_recipe(BuildOptions(model="m", target=target, modelopt=str(path), **options), find(target))
    assert found is not None
    return found


def saved(folder: Path, configuration: files.Configuration, *shape: int) -> Path:
    weight = torch.randn(shape or (16, 32), generator=torch.Generator().manual_seed(0))
    return files.save(folder / "one.pth", {"layer": files.quantized(weight, torch.ones(weight.shape[1]), configuration)})


def test_it_is_a_recipe_in_words(tmp_path: Path) -> None:
    found = effective("cpu", saved(tmp_path, files.SVDQUANT))
    assert not found.recipe.calibrated and found.lines() == [
        "recipe     modelopt; denoiser: 1 x int8 channel weights, int8 static tensor activations, balanced, with a low-rank branch; "
        "prelude: as the denoiser"
    ]


@pytest.mark.parametrize("configuration", [files.FP8, files.W4A8], ids=["fp8", "w4a8"])
def test_what_the_target_cannot_do_is_refused_or_listed(configuration: files.Configuration, tmp_path: Path) -> None:
    path = saved(tmp_path, configuration)
    with pytest.raises(UserError, match=r"cpu: denoiser: expected a form that openvino computes exactly, got e4m3 tensor.*--allow-degrade"):
        effective("cpu", path)
    found = effective("cpu", path, allow_degrade=True)
    assert found.sections()["denoiser"].startswith("1 x int8 channel weights, int8 static tensor activations")
    assert [degraded.section for degraded in found.degraded] == ["denoiser"]
    assert not effective("rtx-4090", path).degraded


@pytest.mark.parametrize(
    ("target", "configuration", "built"),
    [
        ("cpu", files.FP8, "int8 channel weights, int8 static tensor activations"),
        ("rtx-4090", files.FP8, "int8 channel weights, int8 static tensor activations"),
    ],
)
def test_convolutions_multiply_integers(target: str, configuration: files.Configuration, built: str, tmp_path: Path) -> None:
    path = saved(tmp_path, configuration, 8, 4, 3, 3)
    with pytest.raises(UserError, match="no convolution multiplies e4m3"):
        effective(target, path)
    assert effective(target, path, allow_degrade=True).sections()["denoiser"] == f"1 x {built}"


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.pth: expected a checkpoint of ModelOpt, got no such file"):
        effective("cpu", tmp_path / "none.pth")
