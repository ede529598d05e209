"""Calibration of a tiny pipeline against brute force, interrupted against uninterrupted, and what is refused."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dexport.errors import Failure, UserError
from dexport.exporter.calibration import Calibration, accumulator_bytes, calibrate
from dexport.exporter.calibration_file import resume_path
from dexport.exporter.calibration_request import CalibrationRequest
from dexport.exporter.options import BuildOptions
from dexport.exporter.solver import probe
from dexport.exporter.source import source_hash
from dexport.exporter.torch_pipeline import TorchPipeline, open_torch_pipeline, torch_pipeline
from dexport.passes.graph import Weight
from dexport.passes.quantization.attention_sites import attention_sites
from dexport.passes.quantization.samplers import Sampler
from dexport.passes.quantization.sites import sites
from dexport.passes.quantization.statistics import SiteStatistics, Statistics, load_statistics

STEPS = 3
PROMPTS = ("a red circle", "a large blue square", "the green triangle", "a small yellow circle at the top", "a square") * 2
REQUEST = CalibrationRequest(conditions=PROMPTS, seed=5, samples=12)  # ten pictures: a batch of eight and one of two


@pytest.fixture(scope="module")
def pipeline(pixart: Path) -> TorchPipeline:
    return open_torch_pipeline(BuildOptions(model=str(pixart), target="cpu", steps=(STEPS,)))


@pytest.fixture(scope="module")
def found(pipeline: TorchPipeline) -> Statistics:
    return calibrate(pipeline, REQUEST, None)


@pytest.fixture(scope="module")
def seen(pipeline: TorchPipeline) -> dict[tuple[str, str, int], list[torch.Tensor]]:
    """(component, node, step) -> every value, in the batches that calibration makes."""
    values: dict[tuple[str, str, int], list[torch.Tensor]] = {}

    def watch(component: str, step: int, node: Any, value: Any) -> None:
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            values.setdefault((component, node.name, step), []).append(value.clone())

    for first in (0, 8):
        conditions = PROMPTS[first : first + 8]
        pipeline.run(conditions, range(5 + first, 5 + first + len(conditions)), watch=watch)
    return values


def test_every_site_of_every_component_equals_brute_force(
    pipeline: TorchPipeline, found: Statistics, seen: dict[tuple[str, str, int], list[torch.Tensor]]
) -> None:
    assert set(found.components) == {"text_encoder", "denoiser_prompt", "denoiser", "vae_decoder"}
    for component, layers in found.components.items():
        every = {site.name: site for site in sites(pipeline.graphs[component])}
        operands = {name for site in attention_sites(pipeline.graphs[component]) for name in site.operand_names}
        assert layers.keys() == every.keys() | operands
        for name, site in every.items():
            steps = STEPS if component == "denoiser" else 1
            assert len(layers[name].count) == steps
            for step in range(steps):
                values = seen[component, site.source, step]
                rows = torch.cat([(v if site.kind == "linear" else v.movedim(1, -1)).flatten(0, -2) for v in values])
                _check_step(layers[name], step, rows)


def _check_step(found: SiteStatistics, step: int, rows: torch.Tensor) -> None:
    assert found.count[step] == len(rows)
    assert found.histogram[step].sum() == rows.numel()
    torch.testing.assert_close(found.minimum[step], rows.amin(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.maximum[step], rows.amax(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.mean[step], rows.double().mean(0).float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.square[step], rows.double().square().mean(0).float(), rtol=1e-4, atol=1e-5)


def test_both_halves_of_the_guidance_are_counted(found: Statistics) -> None:
    query = found.of("denoiser", "transformer_blocks.0.attn1.to_q")
    text = found.of("text_encoder", "encoder.block.0.layer.0.SelfAttention.q")
    assert query is not None and text is not None
    assert query.count.tolist() == [2 * len(PROMPTS) * 16] * STEPS
    assert text.count.tolist() == [2 * len(PROMPTS) * 120]
    assert query.token_minimum is not None and query.token_minimum.shape == (STEPS, 16)


def test_halves_in_turn_are_counted_the_same(pipeline: TorchPipeline, found: Statistics) -> None:
    options = dataclasses.replace(pipeline.plan.options, guidance_batching=False)
    turns = calibrate(torch_pipeline(dataclasses.replace(pipeline.plan, options=options), pipeline.split, pipeline.solver), REQUEST, None)
    for name, whole in found.components["denoiser"].items():
        apart = turns.components["denoiser"][name]
        assert torch.equal(apart.count, whole.count)
        torch.testing.assert_close(apart.maximum, whole.maximum, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(apart.square, whole.square, rtol=1e-3, atol=1e-4)


def test_it_says_what_it_is_of(pipeline: TorchPipeline, found: Statistics, pixart: Path) -> None:
    assert found.model == source_hash(pixart)
    assert found.size == (16, 16)
    assert found.guidance == pipeline.plan.guidance
    assert found.schedule.timesteps == pipeline.solver.timesteps
    assert len(found.schedule.sigmas) == STEPS
    assert list(found.schedule.sigmas) == sorted(found.schedule.sigmas, reverse=True)
    assert found.samples.prompts == PROMPTS
    assert found.samples.seeds == tuple(range(5, 15))


def test_samples_are_what_entered_the_loop(found: Statistics, seen: dict[tuple[str, str, int], list[torch.Tensor]]) -> None:
    samples = found.samples
    assert torch.bincount(samples.steps, minlength=STEPS).tolist() == [4] * STEPS
    assert len({(int(s), int(p)) for s, p in zip(samples.steps, samples.pictures)}) == 12
    for latent, step, picture in zip(samples.latents, samples.steps.tolist(), samples.pictures.tolist()):
        batch = seen["denoiser", "latent", step][picture // 8]
        torch.testing.assert_close(latent, batch[picture % 8], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sampler", ["uniform", "tdac"])
def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(pipeline: TorchPipeline, tmp_path: Path, sampler: str) -> None:
    request = dataclasses.replace(REQUEST, sampler=Sampler(sampler))
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    calibrate(pipeline, request, whole)
    with pytest.raises(KeyboardInterrupt):
        calibrate(pipeline, request, parts, _interrupting("pictures 9 to 10 of 10"))
    assert [p.name for p in tmp_path.iterdir() if "parts" in p.name] == ["parts.safetensors.resume"]
    stages: list[str] = []
    calibrate(pipeline, request, parts, lambda stage, _: stages.append(stage))
    assert "go on after 8 pictures" in stages and not any(stage.startswith("pictures 1 ") for stage in stages)
    assert parts.read_bytes() == whole.read_bytes()
    assert not resume_path(parts).exists()
    assert load_statistics(parts).sampler == sampler


def _interrupting(stage: str) -> Any:
    def report(said: str, done: float | None) -> None:
        if said == stage:
            raise KeyboardInterrupt

    return report


@pytest.fixture(scope="module")
def unfinished(pipeline: TorchPipeline, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("unfinished") / "statistics"
    calibration = Calibration(pipeline, REQUEST)
    calibration.batch(lambda stage, done: None)
    calibration.save(resume_path(path))
    before = resume_path(path).read_bytes()
    yield path
    assert resume_path(path).read_bytes() == before  # nobody who was refused touched it


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"conditions": (*PROMPTS[:9], "another")}, "with prompts [0-9a-f]{16}, got prompts"),
        ({"conditions": PROMPTS[:9]}, "with pictures 9, got pictures 10"),
        ({"seed": 6}, "with seed 6, got seed 5"),
        ({"guidance": 1.5}, "with guidance 1.5, got guidance 4.5"),
        ({"sampler": Sampler("ndtc")}, "with sampler .*ndtc.*, got sampler .*uniform"),
    ],
)
def test_an_unfinished_calibration_with_other_options_is_refused(
    pipeline: TorchPipeline, unfinished: Path, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        calibrate(pipeline, dataclasses.replace(REQUEST, **changed), unfinished)


def test_an_unfinished_calibration_of_other_steps_is_refused(pipeline: TorchPipeline, unfinished: Path) -> None:
    solver = probe(pipeline.plan.scheduler, pipeline.plan.schedule(pipeline.split.size, 2))
    other = torch_pipeline(pipeline.plan, pipeline.split, solver)
    with pytest.raises(UserError, match=r"with steps 2, got steps 3; repeat the command that began it, or delete the file"):
        calibrate(other, REQUEST, unfinished)


@pytest.mark.parametrize("content", [b"", b"no safetensors at all", None])
def test_a_damaged_unfinished_file_is_refused(pipeline: TorchPipeline, unfinished: Path, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "statistics"
    resume_path(path).write_bytes(resume_path(unfinished).read_bytes()[:-100] if content is None else content)
    with pytest.raises(UserError, match="damaged file; delete it to begin anew"):
        calibrate(pipeline, REQUEST, path)


def test_memory_is_what_was_said(pipeline: TorchPipeline) -> None:
    calibration = Calibration(pipeline, REQUEST)
    real = sum(t.nbytes for found in calibration.accumulators.values() for a in found for t in a.tensors().values())
    assert real == accumulator_bytes(pipeline) == calibration.nbytes
    assert f"statistics take {real / 2**20:.1f} MiB" in calibration.summary()


def test_an_unfinished_calibration_of_another_model_is_refused(
    pipeline: TorchPipeline, pixart: Path, unfinished: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(pixart, tmp_path / "model")
    (moved / "more.json").write_text("{}")
    other = dataclasses.replace(pipeline, plan=dataclasses.replace(pipeline.plan, directory=moved))
    with pytest.raises(UserError, match=r"with model [0-9a-f]{57}\.\.\., got model"):
        calibrate(other, REQUEST, unfinished)


def test_a_value_that_is_not_finite_is_named(pipeline: TorchPipeline) -> None:
    graph = pipeline.graphs["denoiser"]
    name = "model.transformer_blocks.1.attn1.to_out.0.weight"
    broken = graph.weights[name]
    bad = Weight(broken.shape, broken.dtype, lambda: torch.full(broken.shape, torch.nan), broken.origin)
    changed = pipeline.with_graphs({"denoiser": dataclasses.replace(graph, weights={**graph.weights, name: bad})})
    with pytest.raises(Failure, match=r"^transformer_blocks.1.attn2.to_q, step 0: expected finite activations, got NaN or Inf; [^\n]*$"):
        calibrate(changed, REQUEST, None)
