"""Sensitivities of a tiny pipeline against runs of quantized pipelines; resuming; what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dexport.errors import UserError
from dexport.exporter import sensitivity
from dexport.exporter.quality import picture_psnr
from dexport.exporter.quantization import written
from dexport.exporter.sensitivity import BROKEN, PictureTrial, Probe, Units, measure_sensitivity
from dexport.exporter.sensitivity_table import load_table
from dexport.exporter.torch_pipeline import TorchPipeline
from dexport.passes.quantization.decide import Decisions, decide
from dexport.passes.quantization.recipe import ActivationSpec, Treatment, WeightSpec
from dexport.passes.quantization.scratch import Scratch
from dexport.passes.quantization.sites import sites
from dexport.passes.quantization.statistics import Statistics

TREATMENTS = {
    "w2": Treatment(weights=WeightSpec(format="int2"), activations=ActivationSpec(format="int8", mode="table")),
    "w8": Treatment(weights=WeightSpec(format="int8"), activations=ActivationSpec(format="int8", mode="table")),
}


@pytest.fixture(scope="module")
def choices(opened: TorchPipeline, calibrated: Statistics, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Decisions]:
    loop, scratch = opened.split.denoiser.loop, Scratch(tmp_path_factory.mktemp("scratch"))
    names = [site.name for site in sites(loop)]
    return {c: decide(loop, dict.fromkeys(names, t), calibrated.components["denoiser"], scratch) for c, t in TREATMENTS.items()}


@pytest.fixture(scope="module")
def units(opened: TorchPipeline) -> Units:
    """Three layers alone, and two together."""
    names = [site.name for site in sites(opened.split.denoiser.loop) if site.name.startswith("transformer_blocks.0.")]
    return {**{name: (name,) for name in names[:3]}, "pair": tuple(names[3:5])}


@pytest.mark.parametrize("metric", ["sqnr", "output", "model", "end-to-end"])
def test_two_bits_hurt_more_than_eight(
    opened: TorchPipeline, calibrated: Statistics, choices: dict[str, Decisions], units: Units, metric: str
) -> None:
    table = measure_sensitivity(opened, "denoiser", choices, units, calibrated, Probe(metric=metric, ranges=2, pictures=2))
    assert set(table.harms) == set(units)
    assert table.range_names(table.measure) == (("whole run",) if metric == "end-to-end" else ("steps 1-2", "steps 3-4"))
    for unit in units:
        for measure in table.harms[unit]["w2"]:
            assert table.harm(unit, "w2", measure) > 2 * table.harm(unit, "w8", measure) >= 0
    assert ("prompt" in table.harms["pair"]["w2"]) == (metric in ("model", "end-to-end"))


def test_output_and_prompt_are_those_of_the_quantized_pipeline(
    opened: TorchPipeline, calibrated: Statistics, choices: dict[str, Decisions], units: Units
) -> None:
    """The first step has one latent whatever is quantized: there a run of the quantized pipeline is another way to the same figures."""
    probe = Probe(metric="model", ranges=4, pictures=3)
    table = measure_sensitivity(opened, "denoiser", choices, {"pair": units["pair"]}, calibrated, probe)
    values = {site: choices["w2"].values[site] for site in units["pair"]}
    changed = opened.with_graphs(written(opened.split, opened.split.denoiser.loop, Decisions(values, {}, {}), calibrated))
    outputs = []
    for pipeline in (opened, changed):
        seen: dict[int, torch.Tensor] = {}

        def watch(component: str, step: int, node: torch.fx.Node, value: object, seen: dict[int, torch.Tensor] = seen) -> None:
            if component == "denoiser" and node.op == "output" and isinstance(value, tuple | list):
                seen[step] = value[0].clone()

        pipeline.run(list(calibrated.samples.prompts), list(calibrated.samples.seeds), guidance=3.0, watch=watch)
        outputs.append(seen[0].chunk(2))
    (u, c), (u2, c2) = outputs
    guided, guided2 = u + 3.0 * (c - u), u2 + 3.0 * (c2 - u2)
    harms = table.harms["pair"]["w2"]
    assert harms["output"][0] == pytest.approx(float((guided2 - guided).square().sum() / guided.square().sum()), rel=1e-3)
    assert harms["prompt"][0] == pytest.approx(float((c2 - u2 - c + u).square().sum() / (c - u).square().sum()), rel=1e-3)


def test_pictures_are_those_of_the_quantized_pipeline_and_a_scorer_sees_them(
    opened: TorchPipeline, calibrated: Statistics, choices: dict[str, Decisions], units: Units
) -> None:
    scored: list[str] = []

    def scorer(prompt: str, picture: np.ndarray) -> float:
        scored.append(prompt)
        return float(picture.mean())

    probe = Probe(metric="end-to-end", ranges=1, pictures=2, scorer=scorer)
    table = measure_sensitivity(opened, "denoiser", {"w2": choices["w2"]}, {"pair": units["pair"]}, calibrated, probe)
    trial = PictureTrial(opened, "denoiser", calibrated, 2)
    pictures = trial.pictures({site: choices["w2"].values[site] for site in units["pair"]})
    assert pictures is not None
    psnr = picture_psnr(trial.reference, pictures)
    harms = table.harms["pair"]["w2"]
    assert harms["picture"] == (pytest.approx(float(np.mean(10 ** (-psnr / 10)))),)
    assert harms["score"] == (pytest.approx(max(float(trial.reference.mean() - pictures.mean()), 0.0)),)
    assert scored == ["a red circle", "a large blue square"] * 2


def test_nan_is_the_worst(opened: TorchPipeline, calibrated: Statistics, choices: dict[str, Decisions], units: Units) -> None:
    site = units["pair"][0]
    values = choices["w8"].values[site]
    part = values.parts[0]
    scale = replace(part.scale, load=lambda: torch.full(part.scale.shape, torch.nan, dtype=part.scale.dtype))
    broken = {"nan": Decisions({site: replace(values, parts=(replace(part, scale=scale),))}, {}, {})}
    table = measure_sensitivity(opened, "denoiser", broken, {site: (site,)}, calibrated, Probe(metric="end-to-end", ranges=1, pictures=1))
    assert set(table.harms[site]["nan"].values()) == {(BROKEN,)}


def test_an_interrupted_measurement_goes_on(
    opened: TorchPipeline,
    calibrated: Statistics,
    choices: dict[str, Decisions],
    units: Units,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    probe, path = Probe(metric="model", ranges=1, pictures=1), tmp_path / "s.json"
    whole = measure_sensitivity(opened, "denoiser", choices, units, calibrated, probe)
    tried: list[object] = []
    real = sensitivity.quantize

    def counted(*arguments: object) -> object:
        if len(tried) == 3:
            raise KeyboardInterrupt
        tried.append(arguments)
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(sensitivity, "quantize", counted)
    with pytest.raises(KeyboardInterrupt):
        measure_sensitivity(opened, "denoiser", choices, units, calibrated, probe, path=path)
    assert sum(len(found) for found in load_table(path).harms.values()) == 3
    monkeypatch.setattr(sensitivity, "quantize", real)
    stages: list[str] = []
    again = measure_sensitivity(
        opened, "denoiser", choices, units, calibrated, probe, path=path, report=lambda stage, done: stages.append(stage)
    )
    assert len(stages) == 2 * len(units) - 3
    assert again.harms == whole.harms == load_table(path).harms
    other = replace(calibrated, guidance=2.0)
    with pytest.raises(UserError, match=r"sensitivities with guidance 2\.0, got 3\.0"):
        measure_sensitivity(opened, "denoiser", choices, units, other, probe, path=path)


def test_other_parts_of_the_pipeline(opened: TorchPipeline, calibrated: Statistics, tmp_path: Path) -> None:
    graph = opened.graphs["vae_decoder"]
    names = [site.name for site in sites(graph)][:2]
    treatment = Treatment(weights=WeightSpec(format="int3"))
    choices = {"w3": decide(graph, dict.fromkeys(names, treatment), calibrated.components["vae_decoder"], Scratch(tmp_path))}
    each = {name: (name,) for name in names}
    table = measure_sensitivity(opened, "vae_decoder", choices, each, calibrated, Probe(metric="end-to-end", pictures=1))
    assert all(set(found["w3"]) == {"picture"} and found["w3"]["picture"][0] > 0 for found in table.harms.values())
    assert measure_sensitivity(opened, "vae_decoder", choices, each, calibrated, Probe(metric="output")).ranges == ((0, 0),)
    with pytest.raises(UserError, match="that is no denoiser"):
        measure_sensitivity(opened, "vae_decoder", choices, each, calibrated, Probe(metric="model"))


@pytest.mark.parametrize("wrong", [{"metric": "fid"}, {"pictures": 0}, {"pictures": 33}, {"ranges": 0}])
def test_what_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError):
        Probe(**wrong)  # type: ignore[arg-type]
