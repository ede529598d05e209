"""Errors of layers against what the quantized graph computes, and what makes them grow."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from dexport.passes.graph import BATCH, Graph, Kind, run
from dexport.passes.quantization.decide import Decisions, decide
from dexport.passes.quantization.quantize import quantize
from dexport.passes.quantization.recipe import ActivationSpec, BalanceSpec, LowRankSpec, Treatment, WeightSpec
from dexport.passes.quantization.scratch import Scratch
from dexport.passes.quantization.sensitivity import layer_errors, rounded_weight, step_ranges, weight_error
from dexport.passes.quantization.statistics import BINS, SiteStatistics
from tests.passes.graphs import Input, graph_of

STEPS, CHANNELS, ROWS = 4, 32, 256
INT8 = WeightSpec(format="int8")
INT4 = WeightSpec(format="int4", granularity="block-16")
DYNAMIC = ActivationSpec(format="int8", mode="dynamic", granularity="token")
STATIC = ActivationSpec(format="int8")
TABLE = ActivationSpec(format="int8", mode="table")


def _statistics(rows: torch.Tensor, steps: torch.Tensor) -> SiteStatistics:
    """As calibration would find them from these rows alone."""
    each = [rows[steps == k] for k in range(STEPS)]
    low, high = (torch.stack([f(r, 0) for r in each]) for f in (torch.amin, torch.amax))
    limit = torch.exp2(torch.maximum(high, -low).amax(1).log2().ceil())
    return SiteStatistics(
        count=torch.tensor([len(r) for r in each]),
        minimum=low,
        maximum=high,
        mean=torch.stack([r.mean(0) for r in each]),
        square=torch.stack([r.square().mean(0) for r in each]),
        histogram=torch.stack([torch.histc(r, BINS, -float(m), float(m)).long() for r, m in zip(each, limit)]),
        limit=limit,
        token_minimum=None,
        token_maximum=None,
        rows=rows,
        row_steps=steps,
    )


@pytest.fixture(scope="module")
def graph() -> Graph:
    torch.manual_seed(0)
    return graph_of(nn.Linear(CHANNELS, 24), (Input("latent", (BATCH, CHANNELS), torch.float32, Kind.LATENT),), repaired=False)


@pytest.fixture(scope="module")
def seen() -> SiteStatistics:
    """Values grow from step to step, and some channels are larger than others."""
    torch.manual_seed(1)
    steps = torch.arange(ROWS) % STEPS
    size = torch.ones(CHANNELS)
    size[::7] = 6.0
    return _statistics(torch.randn(ROWS, CHANNELS) * size * torch.tensor([0.1, 0.3, 1.0, 4.0])[steps, None], steps)


def _decided(graph: Graph, treatment: Treatment, seen: SiteStatistics, folder: Path) -> Decisions:
    name = _name(graph)
    return decide(graph, {name: treatment}, {name: seen}, Scratch(folder))


def _name(graph: Graph) -> str:
    from dexport.passes.quantization.sites import sites

    return sites(graph)[0].name


@pytest.mark.parametrize(
    "treatment",
    [
        Treatment(weights=INT8),
        Treatment(weights=INT4, activations=DYNAMIC),
        Treatment(weights=INT8, activations=STATIC),
        Treatment(weights=INT8, activations=TABLE),
        Treatment(weights=INT8, activations=replace(STATIC, centred=True)),
        Treatment(weights=INT8, activations=replace(TABLE, centred=True)),
        Treatment(weights=INT4, activations=DYNAMIC, balance=BalanceSpec(method="smoothquant"), rotate="hadamard"),
        Treatment(weights=INT4, activations=DYNAMIC, low_rank=LowRankSpec(rank=4)),
        Treatment(weights=WeightSpec(format="nvfp4"), activations=ActivationSpec(format="nvfp4", mode="dynamic")),
        Treatment(weights=INT8, activations=ActivationSpec(format="int8", granularity="channel-groups-2")),
    ],
    ids=lambda t: f"{t.weights.format}-{t.activations.mode if t.activations else 'none'}",
)
def test_the_error_is_that_of_the_quantized_graph(graph: Graph, seen: SiteStatistics, treatment: Treatment, tmp_path: Path) -> None:
    decisions = _decided(graph, treatment, seen, tmp_path)
    spans = step_ranges(STEPS, 2)
    ((site, errors),) = layer_errors(graph, decisions, {_name(graph): seen}, "output", spans)
    assert site == _name(graph)
    quantized = quantize(graph, decisions.values)
    for span, error in zip(spans, errors, strict=True):
        noise = signal = 0.0
        for step in span:
            rows = seen.rows[seen.row_steps == step]
            extra = {} if quantized.rows is None else {"step_values_quantization": quantized.rows[step : step + 1]}
            exact = run(graph, {"latent": rows})["out"]
            wrong = run(quantized.graph, {"latent": rows, **extra})["out"]
            bias = run(graph, {"latent": torch.zeros(1, CHANNELS)})["out"]
            noise += float((wrong - exact).square().sum())
            signal += float((exact - bias).square().sum())
        assert error == pytest.approx(noise / signal, rel=1e-3)
        assert 0 < error < 0.2


def test_one_static_scale_hurts_the_small_steps_and_a_table_does_not(graph: Graph, seen: SiteStatistics, tmp_path: Path) -> None:
    found = {}
    for name, spec in (("static", STATIC), ("table", TABLE)):
        decisions = _decided(graph, Treatment(weights=INT8, activations=spec), seen, tmp_path)
        ((_, found[name]),) = layer_errors(graph, decisions, {_name(graph): seen}, "output", step_ranges(STEPS, STEPS))
    assert found["static"][0] > 20 * found["static"][-1]
    assert found["table"][0] < 0.1 * found["static"][0]


def test_fewer_bits_are_worse_by_six_decibels_each(graph: Graph, seen: SiteStatistics, tmp_path: Path) -> None:
    errors = []
    for bits in (3, 4, 5, 6, 7, 8):
        decisions = _decided(graph, Treatment(weights=WeightSpec(format=f"int{bits}")), seen, tmp_path)
        ((_, (error,)),) = layer_errors(graph, decisions, {}, "sqnr", step_ranges(STEPS, 1))
        errors.append(error)
    for more, fewer in zip(errors[1:], errors):
        assert 2.5 < fewer / more < 7.5


def test_a_branch_is_part_of_the_weight(graph: Graph, seen: SiteStatistics, tmp_path: Path) -> None:
    weight = graph.weights[next(n for n, w in graph.weights.items() if len(w.shape) == 2)].load()
    plain, branched = (
        _decided(graph, Treatment(weights=WeightSpec(format="int2"), low_rank=low_rank), seen, tmp_path).values[_name(graph)]
        for low_rank in (None, LowRankSpec(rank=16))
    )
    assert weight_error(weight, branched) < 0.5 * weight_error(weight, plain)
    assert rounded_weight(tuple(weight.shape), branched).shape == weight.shape


@pytest.mark.parametrize("activations", [None, STATIC, replace(DYNAMIC, granularity="tensor")], ids=["none", "static", "dynamic"])
@pytest.mark.parametrize("groups", [1, 4])
def test_convolutions_of_independent_channels(activations: ActivationSpec | None, groups: int, tmp_path: Path) -> None:
    torch.manual_seed(2)
    latent = Input("latent", (BATCH, 16, 12, 12), torch.float32, Kind.LATENT)
    graph = graph_of(nn.Conv2d(16, 24, 3, groups=groups), (latent,), repaired=False)
    name = _name(graph)
    x = torch.randn(8, 16, 12, 12)
    rows = x.movedim(1, -1).flatten(0, 2)[: 4 * 200]
    seen = _statistics(rows, torch.arange(len(rows)) % STEPS)
    treatment = Treatment(weights=WeightSpec(format="int4"), activations=activations)
    decisions = decide(graph, {name: treatment}, {name: seen}, Scratch(tmp_path))
    ((_, (error,)),) = layer_errors(graph, decisions, {name: seen}, "output", step_ranges(STEPS, 1))
    exact, wrong = run(graph, {"latent": x})["out"], run(quantize(graph, decisions.values).graph, {"latent": x})["out"]
    bias = run(graph, {"latent": torch.zeros(1, 16, 12, 12)})["out"]
    assert error == pytest.approx(float((exact - wrong).square().sum() / (exact - bias).square().sum()), rel=0.1)


def test_token_groups_take_the_smallest_scale_that_holds_a_row(graph: Graph, seen: SiteStatistics, tmp_path: Path) -> None:
    decisions = _decided(graph, Treatment(weights=INT8, activations=STATIC), seen, tmp_path)
    values = decisions.values[_name(graph)]
    part = values.parts[0]
    assert part.activations is not None and part.activations.scale is not None
    fine = part.activations.scale * torch.tensor([[0.05], [1.0]])
    tokens = replace(values, parts=(replace(part, activations=replace(part.activations, scale=fine)),))
    spans = step_ranges(STEPS, STEPS)
    ((_, one),) = layer_errors(graph, decisions, {_name(graph): seen}, "output", spans)
    ((_, two),) = layer_errors(graph, replace(decisions, values={_name(graph): tokens}), {_name(graph): seen}, "output", spans)
    assert two[0] < 0.1 * one[0]  # small rows fit into the fine scale
    assert two[-1] == pytest.approx(one[-1], rel=0.2)  # large ones into the coarse scale only


def test_a_range_that_no_row_came_from_takes_all_rows(graph: Graph, seen: SiteStatistics, tmp_path: Path) -> None:
    keep = seen.row_steps < 2
    few = replace(seen, rows=seen.rows[keep], row_steps=seen.row_steps[keep])
    decisions = _decided(graph, Treatment(weights=INT8), seen, tmp_path)
    ((_, errors),) = layer_errors(graph, decisions, {_name(graph): few}, "output", step_ranges(STEPS, 2))
    assert errors[1] == pytest.approx(errors[0])


def test_ranges_cover_the_steps_and_none_is_empty() -> None:
    assert step_ranges(20, 4) == (range(5), range(5, 10), range(10, 15), range(15, 20))
    assert step_ranges(3, 8) == (range(1), range(1, 2), range(2, 3))
    assert step_ranges(1, 1) == (range(1),)
