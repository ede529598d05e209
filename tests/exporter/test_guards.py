"""What is of no use is refused and named: NaN, infinities, flat pictures, too little quality."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dexport.errors import Failure, UserError
from dexport.exporter.guards import BadOutput, _Found, _Search, check_output, checked_run, find_bad, require_quality
from dexport.exporter.options import BuildOptions
from dexport.exporter.quality import Quality, ScoreChange, Spread
from dexport.exporter.torch_pipeline import Run, TorchPipeline, open_torch_pipeline
from dexport.passes.graph import Graph, Weight, run
from dexport.passes.quantization.sites import sites
from tests.passes.graphs import LATENT, example, graph_of

PROMPTS, SEEDS = ["a red circle"], [3]


@pytest.fixture(scope="module")
def opened(pixart: Path) -> TorchPipeline:
    return open_torch_pipeline(BuildOptions(model=str(pixart), target="cpu", steps=(4,)))


def _with_weight(graph: Graph, target: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Graph:
    """The graph with one weight changed."""
    weight = graph.weights[target]
    changed: Mapping[str, Weight] = {**graph.weights, target: replace(weight, load=lambda: change(weight.load()))}
    return replace(graph, weights=changed)


def _overflowing(weight: torch.Tensor) -> torch.Tensor:
    return weight.sign() * 3e38


def _layer(pipeline: TorchPipeline, component: str, index: int) -> tuple[str, str]:
    """Name and weight of a site."""
    site = sites(pipeline.graphs[component])[index]
    return site.name, site.weight


@pytest.mark.parametrize("component", ["denoiser", "vae_decoder"])
def test_a_layer_that_overflows_is_named(opened: TorchPipeline, component: str) -> None:
    """The decoder returns bytes, in which NaN is a black pixel."""
    name, weight = _layer(opened, component, 3)
    broken = opened.with_graphs({component: _with_weight(opened.graphs[component], weight, _overflowing)})
    with pytest.raises(BadOutput, match=rf"{component}, step 0, node \w+, layer {name}: expected finite numbers, got") as caught:
        checked_run(broken, PROMPTS, SEEDS)
    bad = caught.value.bad
    assert bad is not None and bad.site == name and bad.infinite > 0 and bad.nan + bad.infinite <= bad.size


def test_a_weight_that_is_nan_is_named(opened: TorchPipeline) -> None:
    name, weight = _layer(opened, "denoiser", 5)
    broken = opened.with_graphs({"denoiser": _with_weight(opened.graphs["denoiser"], weight, lambda w: w * float("nan"))})
    bad = find_bad(broken, PROMPTS, SEEDS)
    assert bad is not None and (bad.component, bad.site) == ("denoiser", name)
    assert bad.nan == bad.size == opened.graphs["denoiser"].weights[weight].load().numel(), "the weight itself, not what it makes"


def test_a_white_picture_names_the_infinity_that_clamping_hid(opened: TorchPipeline) -> None:
    name, weight = _layer(opened, "vae_decoder", -1)
    bias = weight.removesuffix("weight") + "bias"
    decoder = _with_weight(opened.graphs["vae_decoder"], bias, lambda b: b + float("inf"))
    with pytest.raises(BadOutput, match=rf"layer {name}: expected finite numbers, got 0 NaN and 3 infinite of 3, and picture 0 is flat"):
        checked_run(opened.with_graphs({"vae_decoder": decoder}), PROMPTS, SEEDS)


def test_a_grey_picture_of_finite_numbers_is_refused_too(opened: TorchPipeline) -> None:
    _, weight = _layer(opened, "vae_decoder", -1)
    grey = opened.with_graphs({"vae_decoder": _with_weight(opened.graphs["vae_decoder"], weight, torch.zeros_like)})
    with pytest.raises(BadOutput, match="vae_decoder: expected pictures with content, got picture 0 is flat") as caught:
        checked_run(grey, PROMPTS, SEEDS)
    assert caught.value.bad is None
    checked_run(grey, PROMPTS, SEEDS, reference=grey.run(PROMPTS, SEEDS))


def test_a_good_run_passes_and_is_the_run(opened: TorchPipeline) -> None:
    assert find_bad(opened, PROMPTS, SEEDS) is None
    passed = checked_run(opened, PROMPTS, SEEDS)
    np.testing.assert_array_equal(passed.pictures, opened.run(PROMPTS, SEEDS).pictures)


class _Masked(nn.Module):
    """Attention scores under a mask, with a gain that may overflow and a part whose infinities never arrive."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.project = nn.Linear(8, 8)
        self.last = nn.Linear(8, 8)
        self.gain = gain

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = torch.full((6, 8), float("-inf")).triu(1)
        scores = self.project(x) * self.gain * self.gain
        harmless = torch.clamp(torch.exp(x * 1e4 + 1e4), max=1.0)
        result: torch.Tensor = self.last(torch.softmax(scores + mask, -1)) + harmless
        return result


def _found(module: nn.Module, *, step: int = 0, anywhere: bool = False) -> Any:
    graph = graph_of(module)
    search = _Search(anywhere)
    inputs = example([LATENT], 2)
    try:
        run(graph, inputs, lambda node, value: search.watch("part", step, node, value))
    except _Found as found:
        return found.bad
    return None


def test_infinities_that_do_no_harm_are_no_fault() -> None:
    assert _found(_Masked(1.0)) is None
    bad = _found(_Masked(1.0), anywhere=True)
    assert bad.node.startswith("exp") and bad.nan == 0


def test_an_overflow_is_named_before_the_mask_that_came_first() -> None:
    bad = _found(_Masked(1e30), step=7)
    assert (bad.component, bad.step, bad.site) == ("part", 7, "project") and bad.node.startswith("mul")


def _run(pictures: np.ndarray[Any, Any], latents: np.ndarray[Any, Any] | None = None) -> Run:
    random = np.random.default_rng(0).standard_normal((2, len(pictures), 4, 2, 2)).astype(np.float32)
    return Run(pictures, random if latents is None else latents)


def _noise(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def test_black_and_flat_pictures_are_refused_by_their_colour() -> None:
    pictures = _noise(3, 8, 8, 3)
    check_output(_run(pictures))
    pictures[1] = 0
    with pytest.raises(BadOutput, match=r"picture 1 is black \(1 of 3"):
        check_output(_run(pictures))
    pictures[1] = (10, 200, 30)
    with pytest.raises(BadOutput, match=r"picture 1 is flat, about the colour \[10, 200, 30\]"):
        check_output(_run(pictures))
    video = _noise(2, 5, 8, 8, 3)
    video[1] = 0
    with pytest.raises(BadOutput, match="picture 1 is black"):
        check_output(_run(video))


def test_a_picture_may_be_flat_where_its_reference_is() -> None:
    flat = np.full((1, 8, 8, 3), 128, np.uint8)
    check_output(_run(flat), _run(flat))
    with pytest.raises(BadOutput):
        check_output(_run(flat), _run(_noise(1, 8, 8, 3)))


def test_constant_latents_name_their_step() -> None:
    pictures = _noise(2, 8, 8, 3)
    latents = _run(pictures).latents.copy()
    latents[1, 0] = 0.5
    with pytest.raises(BadOutput, match="denoiser, step 1: expected latents with content, got one value everywhere in picture 0"):
        check_output(_run(pictures, latents))
    check_output(_run(pictures, latents), _run(pictures, latents))


QUALITY = Quality(8, Spread(31.5, 28.0), Spread(0.9, 0.8), score=ScoreChange(0.95, 0.9, -0.05, -0.07, -0.03, 64))


def test_quality_below_the_demand_fails_with_the_figures() -> None:
    require_quality(QUALITY, None, None)
    require_quality(QUALITY, 31.5, 0.9)
    with pytest.raises(Failure, match=r"--min-psnr: expected a median PSNR of at least 32 dB, got 31\.50 dB \(a tenth .* below 28\.00"):
        require_quality(QUALITY, 32, None)
    with pytest.raises(
        Failure, match=r"--min-score: expected a mean score of at least 0\.91, got 0\.9000 \(the unquantized model: 0\.9500"
    ):
        require_quality(QUALITY, None, 0.91)
    with pytest.raises(UserError, match="--min-score: expected a scorer, got none"):
        require_quality(replace(QUALITY, score=None), None, 0.5)
