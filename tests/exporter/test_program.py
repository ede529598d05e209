"""Sampling programs of tiny PixArt, played with its graphs as components."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from dexport.exporter.options import BuildOptions
from dexport.exporter.plan import plan
from dexport.exporter.program import GuidanceUse, Layout, compose
from dexport.exporter.solver import Solver, probe
from dexport.passes.graph import run
from dexport.runtime.interpreter import run_program
from dexport.runtime.noise import TorchNoise
from dexport.runtime.program import Program, program_from_json, program_to_json
from dexport.runtime.program_check import check_program
from tests.exporter.pipelines.checks import Captured

Array = npt.NDArray[Any]
STEPS, BATCH = 3, 2


@pytest.fixture(scope="module")
def layout(pixart_captured: Captured) -> Layout:
    graphs = pixart_captured.graphs
    decoders = {"vae_decoder": graphs["vae_decoder"]}
    return Layout(pixart_captured.pipeline, (graphs["text_encoder"],), pixart_captured.split, decoders)


@pytest.fixture(scope="module")
def solver(pixart_captured: Captured) -> Solver:
    decided = plan(BuildOptions(model=str(pixart_captured.pipeline.directory), target="cpu", steps=(STEPS,)))
    return probe(decided.scheduler, decided.schedule((16, 16), STEPS))


def _play(layout: Layout, solver: Solver, use: GuidanceUse, scale: float | None = None) -> tuple[Array, Counter[tuple[str, int]], Program]:
    """The picture, how often each component ran at which number of rows, and the program."""
    program, tables = compose(layout, solver, (16, 16), use, "p")
    check_program(program)
    assert program_from_json(program_to_json(program).encode(), "p") == program
    calls: Counter[tuple[str, int]] = Counter()
    split = layout.denoiser
    graphs = [*layout.encoders, *layout.decoders.values(), *(g for g in (split.prompt, split.schedule, split.loop) if g is not None)]

    def component(name: str) -> Any:
        graph = next(g for g in graphs if g.name == name)

        def call(inputs: dict[str, Array]) -> Mapping[str, Array]:
            calls[name, len(inputs[graph.inputs[0].name])] += 1
            found = run(graph, {n: torch.from_numpy(np.array(a)) for n, a in inputs.items()})
            return {n: t.numpy() for n, t in found.items()}

        return call

    halves = 2 if use.guided else 1
    ids = np.arange(2 * BATCH * 120, dtype=np.int64).reshape(2 * BATCH, 120)[-halves * BATCH :] % 500
    request = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    result = run_program(
        program,
        {g.name: component(g.name) for g in graphs},
        request,
        parameters={} if scale is None else {"guidance_scale": scale},
        noise=TorchNoise(0),
        tables=tables,
        batch=BATCH,
    )
    return result["image"], calls, program


def test_halves_in_turn_give_what_they_give_together(layout: Layout, solver: Solver) -> None:
    together, calls, _ = _play(layout, solver, GuidanceUse(True, 4.0))
    in_turn, more_calls, _ = _play(layout, solver, GuidanceUse(True, 4.0, batched=False))
    assert calls["denoiser", 2 * BATCH] == STEPS and calls["denoiser", BATCH] == 0
    assert more_calls["denoiser", BATCH] == 2 * STEPS and more_calls["denoiser", 2 * BATCH] == 0
    assert int(np.abs(together.astype(int) - in_turn).max()) <= 1
    assert together.shape == (BATCH, 16, 16, 3) and together.std() > 1


def test_a_guidance_scale_of_one_is_no_guidance(layout: Layout, solver: Solver) -> None:
    unguided, calls, program = _play(layout, solver, GuidanceUse(False, 4.0))
    assert calls["denoiser", BATCH] == STEPS and program.parameters == {}
    guided, _, program = _play(layout, solver, GuidanceUse(True, 4.0), scale=1.0)
    assert program.parameters == {"guidance_scale": 4.0}
    assert int(np.abs(guided.astype(int) - unguided).max()) <= 1
    strong, _, _ = _play(layout, solver, GuidanceUse(True, 4.0))
    assert int(np.abs(strong.astype(int) - unguided).max()) > 10


def test_prompts_run_once_whatever_the_steps(layout: Layout, solver: Solver) -> None:
    _, calls, _ = _play(layout, solver, GuidanceUse(True, 4.0))
    assert (calls["text_encoder", 2 * BATCH], calls["denoiser_prompt", 2 * BATCH], calls["vae_decoder", BATCH]) == (1, 1, 1)


def test_an_interval_guides_its_calls_only(layout: Layout, solver: Solver) -> None:
    _, calls, _ = _play(layout, solver, GuidanceUse(True, 4.0, (1 / 3, 2 / 3)))
    assert (calls["denoiser", BATCH], calls["denoiser", 2 * BATCH]) == (2, 1)


@pytest.mark.parametrize(
    ("interval", "count", "on"),
    [
        ((0.0, 1.0), 4, [0, 1, 2, 3]),
        ((0.25, 0.75), 4, [1, 2]),
        ((0.0, 0.0), 4, []),
        ((0.3, 0.99), 9, [2, 3, 4, 5, 6, 7]),
        ((0.5, 1.0), 1, [0]),
    ],
)
def test_an_interval_counts_as_the_guiders_of_diffusers(interval: tuple[float, float], count: int, on: list[int]) -> None:
    assert [call for call in range(count) if GuidanceUse(True, 4.0, interval).on(call, count)] == on
    assert not any(GuidanceUse(False, 4.0, interval).on(call, count) for call in range(count))
