"""Quantization inside build: statistics, quality, guards and repair; what the bundle then says and does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dexport.errors import Failure, UserError
from dexport.exporter.build import build
from dexport.exporter.build_recipe import QuantizedBuild, apply_recipe
from dexport.exporter.options import BuildOptions
from dexport.exporter.plan import plan
from dexport.exporter.torch_pipeline import TorchPipeline
from dexport.passes.quantization.statistics import Statistics, save_statistics
from dexport.runtime.bundle import open_bundle
from dexport.runtime.pipeline import load
from dexport.runtime.selftest import selftest

STEPS = 4
CLOSE_DB = 25
"""PSNR of pictures that are still the same; the pipeline is untrained and its pictures are 16 pixels wide, so that 8 bits give about 30."""


@pytest.fixture(scope="module")
def statistics_file(calibrated: Statistics, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("statistics") / "pixart.statistics"
    save_statistics(calibrated, path)
    return path


@pytest.fixture(scope="module")
def quantized_bundle(pixart: Path, statistics_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An int8-table bundle for the processor."""
    options = BuildOptions(
        model=str(pixart), target="cpu", steps=(STEPS,), recipe="int8-table", statistics=str(statistics_file), quality_prompts=2, batch=2
    )
    return build(options, tmp_path_factory.mktemp("bundles") / "int8.dxb")


def applied(opened: TorchPipeline, statistics: Path | None, scratch: Path, **options: Any) -> QuantizedBuild:
    """The recipe applied to the graphs of the opened pipeline."""
    given = {} if statistics is None else {"statistics": str(statistics)}
    asked = BuildOptions(
        **{"model": opened.plan.options.model, "target": "cpu", "steps": (STEPS,), "quality_prompts": 2, **given, **options}
    )
    decided = plan(asked)
    split = opened.split
    return apply_recipe(decided, [split], {(split.size, STEPS): opened.solver}, scratch, lambda stage, done: None)


def test_a_bundle_holds_the_bit_map_its_quality_and_a_report(quantized_bundle: Path) -> None:
    bundle = open_bundle(quantized_bundle)
    manifest = bundle.manifest
    assert manifest.recipe is not None and manifest.recipe["name"] == "int8-table"
    assert sum(layer["bits"] < 16 for layer in manifest.recipe["layers"]) == 16
    assert manifest.recipe["degraded"] == [] and manifest.recipe["repaired"] == []
    assert manifest.quality is not None and manifest.quality["pictures"] == 2 and manifest.quality["psnr"]["median"] > CLOSE_DB
    assert manifest.report == "report/index.html"
    page = bundle.read_bytes("report/index.html").decode()
    assert "int8-table" in page and "transformer_blocks.0.attn1.to_q" in page
    figures = json.loads(bundle.read_bytes("report/report.json"))
    assert figures["quality"]["psnr"] == manifest.quality["psnr"]
    assert "--set recipe=int8-table" in figures["command"]
    assert figures["latency_ms"] == {} and "Time was not estimated: its speed depends on the machine at hand." in page


def test_the_quantized_bundle_computes_what_the_graphs_mean(quantized_bundle: Path) -> None:
    checks = selftest(open_bundle(quantized_bundle))
    assert {check.name for check in checks} >= {"denoiser", "pipeline"} and all(check.passed for check in checks)


def test_it_makes_pictures_like_the_unquantized_bundle(quantized_bundle: Path, pixart_cpu: Path) -> None:
    from dexport.exporter.quality import psnr

    with load(quantized_bundle) as small, load(pixart_cpu) as full:
        given = {"seed": 3, "num_inference_steps": STEPS, "output_type": "np", "guidance_scale": 3.0}
        assert psnr(small("a red circle", **given).images[0], full("a red circle", **given).images[0]) > CLOSE_DB


def test_calibration_happens_in_the_build_where_no_statistics_are_given(opened: TorchPipeline, tmp_path: Path) -> None:
    found = applied(opened, None, tmp_path, recipe="int8", calibration_size=2)
    assert found.judged.quality is not None and found.judged.quality.psnr.median > CLOSE_DB
    assert len(found.judged.pairs) == 2


def test_quality_is_not_measured_when_nobody_asks(opened: TorchPipeline, tmp_path: Path) -> None:
    found = applied(opened, None, tmp_path, recipe="vidit-q-w8a8", quality_prompts=0)
    assert found.judged.quality is None and found.judged.note == "Quality was not measured: it was not asked for."


def test_bad_pictures_stop_the_build_and_name_what_would_help(opened: TorchPipeline, tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"--min-psnr: expected a median PSNR of at least \d+ dB, got .*; these layers need their precision"):
        applied(opened, None, tmp_path, recipe=_two_bits(tmp_path), min_psnr=45.0)


def test_a_budget_of_time_gives_layers_back_their_precision(opened: TorchPipeline, statistics_file: Path, tmp_path: Path) -> None:
    """All layers in int8 is the fastest; a budget above it lets some stay."""
    recipe = tmp_path / "mixed.yaml"
    w8a8 = "{weights: {format: int8}, activations: {format: int8}}"
    choices = f"mixed_precision: {{metric: sqnr, choices: {{w8a8: {w8a8}, keep: {{}}}}}}"
    recipe.write_text(f"name: mixed\nsummary: For a test.\ndenoiser: {{ends: keep, default: {w8a8}, {choices}}}\n")

    def kept(budget: float) -> int:
        found = applied(opened, statistics_file, tmp_path, recipe=str(recipe), target="rtx-3060", budget_ms=budget, quality_prompts=0)
        return sum(layer.bits >= 16 for layer in found.sizes[0].layers)

    with pytest.raises(UserError, match=r"mixed_precision: expected at least \S+ ms, the smallest possible, got 1e-06 ms") as error:
        kept(1e-6)
    smallest = float(str(error.value).split("at least ")[1].split()[0])
    assert kept(smallest) < kept(smallest * 1.02) < kept(1.0)


def test_repair_keeps_the_layers_that_need_it(opened: TorchPipeline, tmp_path: Path) -> None:
    found = applied(opened, None, tmp_path, recipe=_two_bits(tmp_path), min_psnr=45.0, repair=True)
    assert found.repaired and found.judged.quality is not None and found.judged.quality.psnr.median >= 45
    kept = {layer.site for layer in found.sizes[0].layers if layer.bits >= 16}
    assert set(found.repaired) <= kept
    assert any(layer.bits < 16 for layer in found.sizes[0].layers)


def _two_bits(folder: Path) -> str:
    path = folder / "two.yaml"
    path.write_text("name: two\nsummary: Too few bits.\ndenoiser: {ends: keep, default: {weights: {format: int2}}}\n")
    return str(path)


def test_a_scorer_judges_too(opened: TorchPipeline, tmp_path: Path) -> None:
    (tmp_path / "mark.py").write_text("def score(prompt, picture):\n    return 0.25\n")
    scorer = f"{tmp_path}/mark.py:score"
    found = applied(opened, None, tmp_path, recipe="vidit-q-w8a8", scorer=scorer, min_score=0.2)
    assert found.judged.quality is not None and found.judged.quality.score is not None and found.judged.quality.score.candidate == 0.25
    with pytest.raises(Failure, match=r"--min-score: expected a mean score of at least 0\.5, got 0\.25"):
        applied(opened, None, tmp_path, recipe="vidit-q-w8a8", scorer=scorer, min_score=0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "0" * 64}, "expected statistics of model"),
        ({"size": (32, 32)}, "expected statistics at 16x16 pixels, got 32x32"),
    ],
)
def test_statistics_of_something_else_are_refused(
    change: dict[str, Any], message: str, opened: TorchPipeline, calibrated: Statistics, tmp_path: Path
) -> None:
    path = tmp_path / "other.statistics"
    save_statistics(replace(calibrated, **change), path)
    with pytest.raises(UserError, match=message):
        applied(opened, path, tmp_path, recipe="int8")


def test_statistics_of_other_steps_are_refused_by_tables_alone(opened: TorchPipeline, calibrated: Statistics, tmp_path: Path) -> None:
    schedule = replace(calibrated.schedule, sigmas=tuple(s + 50 for s in calibrated.schedule.sigmas))
    path = tmp_path / "other.statistics"
    save_statistics(replace(calibrated, schedule=schedule), path)
    with pytest.raises(UserError, match="step"):
        applied(opened, path, tmp_path, recipe="int8-table")
    assert applied(opened, path, tmp_path, recipe="int8", quality_prompts=0).sizes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"skip": ("x",)}, "skip: expected a recipe that it applies to"),
        (
            {"recipe": "int8", "budget_bytes": 1, "budget_ms": 4.0},
            "budget: expected one of --budget-bytes, --average-bits and --budget-ms, got --budget-bytes and --budget-ms; give one of them",
        ),
        ({"recipe": "int8", "min_score": 0.5}, "min_score: expected a scorer"),
        ({"recipe": "int8", "calibration_size": 0}, "calibration_size: expected at least 1"),
        ({"min_psnr": 30.0}, "min-psnr: expected a recipe that it applies to"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        BuildOptions(model="m", target="cpu", **options)
