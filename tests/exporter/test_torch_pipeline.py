"""The pipeline in PyTorch makes what diffusers makes, and lets others look."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dexport.exporter.options import BuildOptions
from dexport.exporter.torch_pipeline import TorchPipeline, open_torch_pipeline
from dexport.passes.graph import Graph, copied_nodes, with_nodes

PROMPTS, SEEDS, STEPS = ["a red circle", "a large blue square at the top"], [3, 4], 4


@pytest.fixture(scope="module")
def opened(pixart: Path) -> TorchPipeline:
    return open_torch_pipeline(BuildOptions(model=str(pixart), target="cpu", steps=(STEPS,)))


def test_pictures_are_those_of_diffusers(pixart: Path, opened: TorchPipeline) -> None:
    from diffusers import DiffusionPipeline

    original = DiffusionPipeline.from_pretrained(pixart, dtype=torch.float32)
    original.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    options = {"use_resolution_binning": False, "clean_caption": False, "output_type": "np"}
    wanted = original(PROMPTS, num_inference_steps=STEPS, generator=generators, height=16, width=16, **options).images
    run = opened.run(PROMPTS, SEEDS)
    assert run.latents.shape == (STEPS, 2, 4, 8, 8)
    assert int(np.abs(run.pictures.astype(int) - np.rint(wanted * 255).astype(int)).max()) <= 1


def test_pictures_do_not_depend_on_their_batch(opened: TorchPipeline) -> None:
    both, second = opened.run(PROMPTS, SEEDS), opened.run(PROMPTS[1:], SEEDS[1:])
    np.testing.assert_allclose(both.latents[:, 1:], second.latents, atol=1e-4)


def test_steps_are_counted_by_iteration_with_both_halves_in_each(opened: TorchPipeline) -> None:
    rows: Counter[tuple[str, int]] = Counter()

    def watch(component: str, step: int, node: Any, value: Any) -> None:
        if node.op == "output":
            rows[component, step] += len(value[0])

    opened.run(PROMPTS, SEEDS, watch=watch)
    assert [rows["denoiser", step] for step in range(STEPS)] == [4] * STEPS
    assert rows["text_encoder", 0] == 4 and rows["vae_decoder", 0] == 2


def test_a_replaced_graph_is_what_runs(opened: TorchPipeline) -> None:
    decoder = opened.graphs["vae_decoder"]
    changed = opened.with_graphs({"vae_decoder": _black(decoder)}).run(PROMPTS, SEEDS)
    assert changed.pictures.max() == 0
    with pytest.raises(KeyError):
        opened.with_graphs({"nothing": decoder})


def _black(graph: Graph) -> Graph:
    nodes = copied_nodes(graph.module)
    result = next(n for n in nodes.nodes if n.op == "output")
    with nodes.inserting_before(result):
        zero = nodes.call_function(torch.ops.aten.mul.Tensor, (result.args[0][0], 0))
        zero.meta["val"] = result.args[0][0].meta["val"]
    result.args = ((zero,),)
    return with_nodes(graph, nodes)
