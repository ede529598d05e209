"""What a watcher keeps of a run: every value once, the latents of the pictures, the features of the first call."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dexport.exporter.calibration_watch import Watcher, latent_port
from dexport.passes.graph import Graph, run
from dexport.passes.quantization.calibrate import Accumulator, empty_accumulator, watched
from dexport.passes.quantization.samplers import middle_node
from tests.passes.graphs import LATENT, PROMPT, graph_of

STEPS = 2


class _Loop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, latent: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(latent))) + prompt.sum(1, keepdim=True)


@pytest.fixture(scope="module")
def loop() -> Graph:
    return graph_of(_Loop(), (LATENT, PROMPT))


def _made(loop: Graph) -> tuple[Watcher, tuple[Accumulator, ...], list[int]]:
    accumulators = tuple(empty_accumulator(entry, loop.name, 0) for entry in watched(loop, STEPS))
    steps: list[int] = []
    return Watcher({loop.name: accumulators}, loop, middle_node(loop), steps.append), accumulators, steps


def _call(loop: Graph, watcher: Watcher, step: int, latent: torch.Tensor, component: str | None = None) -> dict[str, torch.Tensor]:
    inputs = {"latent": latent, "prompt": torch.zeros(len(latent), 5, 8)}
    return run(loop, inputs, lambda node, value: watcher(component or loop.name, step, node, value))


def test_the_latent_is_found_by_its_kind(loop: Graph) -> None:
    assert latent_port(loop).name == "latent"


def test_both_halves_are_counted_and_one_is_kept(loop: Graph) -> None:
    watcher, accumulators, steps = _made(loop)
    watcher.start(0, pictures=2)
    latents = [torch.randn(2, 6, 8) for _ in range(STEPS)]
    for step, latent in enumerate(latents):
        _call(loop, watcher, step, torch.cat([latent, latent]))
    assert [accumulator.count.tolist() for accumulator in accumulators] == [[24, 24]] * 2
    assert all(torch.equal(watcher.latents[step], latent) for step, latent in enumerate(latents))
    assert steps == [0, 1]


def test_halves_in_turn_are_different_rows(loop: Graph) -> None:
    watcher, accumulators, _ = _made(loop)
    watcher.start(0, pictures=1)
    for value in (1.0, 2.0):
        _call(loop, watcher, 0, torch.full((1, 6, 8), value))
    rows, steps = accumulators[0].reservoir.content()
    assert sorted(rows[:, 0].tolist()) == [1.0] * 6 + [2.0] * 6
    assert len(accumulators[0].reservoir.keys.unique()) == 12 + 1  # every row its own key, and that of empty places
    assert steps.tolist() == [0] * 12


def test_features_are_those_of_the_first_call(loop: Graph) -> None:
    watcher, _, _ = _made(loop)
    watcher.start(0, pictures=1)
    first = _call(loop, watcher, 0, torch.randn(1, 6, 8))["out"]
    _call(loop, watcher, 0, torch.randn(1, 6, 8))
    torch.testing.assert_close(watcher.features[0], first.flatten())  # the prompt is zero: the last layer's output is all there is


def test_other_components_are_left_alone_and_a_new_batch_begins_empty(loop: Graph) -> None:
    watcher, accumulators, _ = _made(loop)
    watcher.start(0, pictures=1)
    _call(loop, watcher, 0, torch.randn(1, 6, 8), component="other")
    assert watcher.latents == {} and int(accumulators[0].count.sum()) == 0
    _call(loop, watcher, 1, torch.randn(1, 6, 8))
    watcher.start(1, pictures=1)
    assert watcher.latents == {} and watcher.features == {}
