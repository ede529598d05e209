"""Samples on their way: at every unit they are what the whole model, unquantized and quantized, would have there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dexport.passes.graph import Graph, run
from dexport.passes.quantization import unit_flow
from dexport.passes.quantization.quantize import quantize
from dexport.passes.quantization.scratch import Scratch
from dexport.passes.quantization.sites import sites
from dexport.passes.quantization.unit_flow import Flow, joined_rows, space
from dexport.passes.quantization.units import Span, spans
from dexport.passes.quantization.values import SiteValues
from tests.passes.quantization.unit_graphs import decided, denoiser, row_inputs, samples, table

ROWS = 12


def _named(graph: Graph, row: int, extra: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Every value of a graph at one row of the samples, by node."""
    seen: dict[str, torch.Tensor] = {}
    run(graph, row_inputs(samples()[0], row) | extra, lambda node, value: seen.update({node.name: value}))
    return seen


def _walk(flow: Flow, listed: tuple[Span, ...], values: dict[str, SiteValues], until: str) -> tuple[dict[str, torch.Tensor], Span]:
    """Up to a unit: what the quantized model feeds it."""
    for span in listed:
        flow.reach(span)
        if span.name == until:
            return flow.inputs(span), span
        exact, _ = flow.exact_outputs(span, inner=False)
        flow.leave(span, exact, values)
    raise AssertionError(until)


@pytest.mark.parametrize("granularity", ["block", "layer"])
def test_inputs_are_those_of_the_quantized_model_and_targets_those_of_the_model(granularity: str, tmp_path: Path) -> None:
    loop = denoiser().loop
    values = decided(loop, Scratch(tmp_path), activations=table(0.02, 0.05, 0.01))
    entering, steps = samples()
    flow = Flow(loop, entering, steps, values, tmp_path, batch=5)
    until = {"block": "blocks.1", "layer": "blocks.1.up"}[granularity]
    inputs, span = _walk(flow, spans(loop, granularity, set(values)), values, until)
    exact, inner = flow.exact_outputs(span, inner=True)
    quantized = quantize(loop, values)
    assert inputs and quantized.rows is not None
    for row in range(ROWS):
        step = int(steps[row])
        rounded = _named(quantized.graph, row, {"step_values_quantization": quantized.rows[step : step + 1]})
        plain = _named(loop, row, {})
        for name, tensor in inputs.items():
            torch.testing.assert_close(tensor[row : row + 1], rounded[name], rtol=1e-4, atol=1e-5)
            assert not torch.allclose(tensor[row : row + 1], plain[name], rtol=1e-3, atol=1e-4)
        for node, tensor in (*exact.items(), *inner.items()):
            torch.testing.assert_close(tensor[row : row + 1], plain[node.name], rtol=1e-4, atol=1e-5)


def test_only_what_is_read_ahead_is_held(tmp_path: Path) -> None:
    loop = denoiser().loop
    values = decided(loop, Scratch(tmp_path))
    entering, steps = samples()
    flow = Flow(loop, entering, steps, values, tmp_path)
    _, span = _walk(flow, spans(loop, "block", set(values)), values, "blocks.1")
    assert set(flow.exact) == set(flow.rounded) == {node for node in span.inputs if node not in flow.static}


def test_before_the_first_quantized_site_nothing_is_computed_twice(tmp_path: Path) -> None:
    loop = denoiser().loop
    entering, steps = samples()
    flow = Flow(loop, entering, steps, {}, tmp_path)
    flow.reach(spans(loop, "block", {"blocks.0.up"})[0])
    assert flow.exact and all(flow.rounded[node] is tensor for node, tensor in flow.exact.items())


def test_what_steps_and_prompts_share_is_held_once(tmp_path: Path) -> None:
    entering, steps = samples()
    flow = Flow(denoiser().loop, entering, steps, {}, tmp_path)
    assert all(len(v.values) < ROWS for n, v in flow.static.items() if v.index is not None and n.name != "latent")
    assert len(flow.static) > len(entering)


def test_sites_before_the_first_unit_are_quantized_as_decided(tmp_path: Path) -> None:
    """A unit further on sees the rounding of sites that are no part of any unit."""
    loop = denoiser().loop
    values = decided(loop, Scratch(tmp_path))
    entering, steps = samples()
    flow = Flow(loop, entering, steps, values, tmp_path)
    (span,) = spans(loop, "block", {"blocks.1.up"})
    flow.reach(span)
    plain, rounded = _named(loop, 0, {}), _named(quantize(loop, values).graph, 0, {})
    for name, tensor in flow.inputs(span).items():
        torch.testing.assert_close(tensor[:1], rounded[name], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(tensor[:1], plain[name], rtol=1e-3)


def test_large_values_are_files_that_go_with_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unit_flow, "_IN_MEMORY", 64)
    for dtype in (torch.float32, torch.bfloat16):
        tensor = space((9, 4), dtype, tmp_path)
        tensor[:] = 3
        assert tensor.shape == (9, 4) and float(tensor.sum()) == 108 and not list(tmp_path.iterdir())
    loop = denoiser().loop
    entering, steps = samples()
    values = decided(loop, Scratch(tmp_path))
    listed = spans(loop, "block", set(values))
    small = _walk(Flow(loop, entering, steps, values, tmp_path), listed, values, "blocks.1")[0]
    monkeypatch.setattr(unit_flow, "_IN_MEMORY", 1 << 30)
    large = _walk(Flow(loop, entering, steps, values, tmp_path), listed, values, "blocks.1")[0]
    assert all(torch.equal(small[name], large[name]) for name in large)


def test_outputs_are_joined_by_their_sizes(tmp_path: Path) -> None:
    first, second = list(denoiser().loop.module.graph.nodes)[:2]
    outputs = {first: torch.full((100, 2, 2), 6.0), second: torch.full((100, 3), 8.0)}
    found = joined_rows(outputs, {first: 3.0, second: 4.0}, tmp_path)
    assert found.shape == (100, 7) and bool((found == 2).all())
    assert torch.equal(joined_rows({first: outputs[first]}, {first: 3.0}, tmp_path), outputs[first])


def test_every_site_is_in_one_unit() -> None:
    loop = denoiser().loop
    names = [site.name for site in sites(loop)]
    for granularity in ("layer", "half-block", "block"):
        assert [site.name for span in spans(loop, granularity, set(names)) for site in span.sites] == names
