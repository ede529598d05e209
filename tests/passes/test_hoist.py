"""Hoisting keeps the values: loop and preludes together give what the whole graph gives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from dexport.passes.dependence import dependence
from dexport.passes.graph import Graph, Kind, call_nodes, is_tensor, run
from dexport.passes.hoist import Hoisted, hoist
from tests.exporter.pipelines.checks import distance, run_split
from tests.passes.graphs import LATENT, PROMPT, TIMESTEP, example, graph_of, operations

INPUTS = (LATENT, TIMESTEP, PROMPT)
WIDTH = 8
_VIEWS = {"slice.Tensor", "reshape.default", "expand.default", "unsqueeze.default", "select.int", "flatten.using_ints"}
Operation = Callable[[torch.Tensor, torch.Tensor, nn.Linear], torch.Tensor]


def _rows(x: torch.Tensor) -> torch.Tensor:
    """[B, 8] or [B, L, 8] -> [B, L, 8]."""
    return x if x.dim() == 3 else x[:, None]


def _alike(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two tensors that broadcast: the second is averaged over its tokens where it has another number of them."""
    x, y = _rows(x), _rows(y)
    return x, y if x.shape[1] == y.shape[1] or 1 in (x.shape[1], y.shape[1]) else y.mean(1, keepdim=True)


def _attend(x: torch.Tensor, y: torch.Tensor, layer: nn.Linear) -> torch.Tensor:
    query, key = (_rows(t).unflatten(2, (2, 4)).transpose(1, 2) for t in (x, y))
    key = key.expand(query.shape[0], -1, -1, -1) if query.shape[0] != 1 else key
    attended = functional.scaled_dot_product_attention(query.expand(key.shape[0], -1, -1, -1), key, key)
    return attended.transpose(1, 2).flatten(2)


def _swap(x: torch.Tensor, y: torch.Tensor, layer: nn.Linear) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([second, first], -1)


def _turn(x: torch.Tensor, y: torch.Tensor, layer: nn.Linear) -> torch.Tensor:
    turned = _rows(x).transpose(1, 2)
    return turned.reshape(turned.shape[0], -1, WIDTH)


OPERATIONS: dict[str, Operation] = {
    "linear": lambda x, y, layer: layer(x),
    "silu": lambda x, y, layer: functional.silu(x),
    "norm": lambda x, y, layer: functional.layer_norm(x, (WIDTH,)),
    "add": lambda x, y, layer: torch.add(*_alike(x, y)),
    "gate": lambda x, y, layer: torch.mul(*_alike(x, y.tanh())),
    "attend": _attend,
    "swap": _swap,
    "turn": _turn,
    "spread": lambda x, y, layer: _rows(x).mean(1, keepdim=True).expand(-1, 6, -1),
    "first": lambda x, y, layer: _rows(x)[:, :1],
    "mix the batch": lambda x, y, layer: x.roll(1, 0),
}


class Program(nn.Module):
    """Operations on a growing pool of values; the result is the latent plus all of them, averaged over tokens."""

    def __init__(self, steps: list[tuple[str, int, int]]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.steps = steps
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in steps)
        self.table = nn.Buffer(torch.randn(1, 6, WIDTH))

    def forward(self, latent: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        angles = timestep.expand(latent.shape[0])[:, None] * torch.arange(1, WIDTH + 1) / 500
        pool = [latent, angles.sin(), prompt, self.table, (timestep / 500).cos().reshape(1, 1).expand(1, WIDTH)]
        for layer, (name, first, second) in zip(self.layers, self.steps):
            pool.append(OPERATIONS[name](pool[first % len(pool)], pool[second % len(pool)], layer))  # type: ignore[arg-type]
        return latent + sum(_rows(x).mean(1, keepdim=True) for x in pool[1:])


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    steps=st.lists(st.tuples(st.sampled_from(sorted(OPERATIONS)), st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=10),
    batch=st.integers(1, 3),
    count=st.integers(1, 5),
)
def test_split_graphs_give_what_whole_ones_give(steps: list[tuple[str, int, int]], batch: int, count: int) -> None:
    graph = graph_of(Program(steps), INPUTS)
    split = hoist(graph)
    inputs = example(INPUTS, batch)
    timesteps = torch.linspace(999, 20, count)
    for step in range(count):
        whole = run(graph, {**inputs, "timestep": timesteps[step : step + 1]})
        assert distance(run_split(split, inputs, timesteps, step)["out"], whole["out"]) < 1e-5
    _check_report(graph, split)
    assert all("val" in node.meta for piece in _pieces(split) for node in call_nodes(piece))


def _pieces(split: Hoisted) -> list[Graph]:
    return [piece for piece in (split.loop, split.table, split.schedule, split.prompt) if piece is not None]


def _check_report(graph: Graph, split: Hoisted) -> None:
    """What the report says is what happened."""
    report = split.report
    assert report.parameters == graph.parameter_count()
    assert report.loop_parameters == split.loop.parameter_count()
    assert set().union(*(piece.used_weights() for piece in _pieces(split))) == set(graph.used_weights())
    kept = {k.node for k in report.kept}
    kinds = dependence(split.loop)
    for node in split.loop.module.graph.nodes:
        free = node.op == "call_function" and is_tensor(node) and kinds[node] and Kind.LATENT not in kinds[node]
        assert not free or node.name in kept or str(node.target).removeprefix("aten.") in _VIEWS, node
    computed = {n.name for n in graph.module.graph.nodes} - {m.node for m in report.moved}
    assert kept <= computed


class Modulated(nn.Module):
    """adaLN: scale and shift from the timestep."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, 2 * WIDTH)

    def forward(self, latent: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        embedded = timestep.expand(latent.shape[0])[:, None] / torch.arange(1, WIDTH + 1)
        scale, shift = self.layer(embedded)[:, None].chunk(2, -1)
        return latent * scale + shift


def test_views_are_moved_by_their_source() -> None:
    """Rule 1: scale and shift are views of one linear's result, which is what the table holds."""
    split = hoist(graph_of(Modulated(), (LATENT, TIMESTEP)))
    assert split.table is not None and split.prompt is None and split.schedule is None
    assert [(m.shape, m.kinds) for m in split.report.moved] == [(("batch", 2 * WIDTH), frozenset([Kind.STEP]))]
    assert [(p.name, p.shape) for p in split.loop.inputs] == [("latent", ("batch", 6, WIDTH)), ("step_values", (1, 2 * WIDTH))]
    assert (split.table.outputs[0].shape, split.report.loop_parameters) == (("steps", 2 * WIDTH), 0)


class OneSlice(nn.Module):
    """Of a wide prompt value the loop reads a small part."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, 100)

    def forward(self, latent: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        return latent + self.layer(prompt)[:, :1, 30 : 30 + WIDTH]


def test_a_small_view_of_a_large_value_is_moved_itself() -> None:
    """Rule 1, the other way round."""
    split = hoist(graph_of(OneSlice(), (LATENT, PROMPT)))
    assert [m.shape for m in split.report.moved] == [("batch", 1, WIDTH)]
    assert split.prompt is not None and split.prompt.outputs[0].shape == ("batch", 1, WIDTH)


class Outer(nn.Module):
    """A pointwise result that is much larger than its two sources."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, 6)

    def forward(self, latent: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        row = prompt.mean(1)
        return latent + self.layer(row)[:, :, None] * row[:, None, :]


def test_what_grows_is_computed_again_in_the_loop() -> None:
    """Rule 2: the outer product of 6 and 8 numbers is recomputed from them, and the report says so."""
    split = hoist(graph_of(Outer(), (LATENT, PROMPT)))
    assert sorted(m.shape for m in split.report.moved) == [("batch", 6), ("batch", WIDTH)]
    assert [k.reason for k in split.report.kept] == [f"recomputed: {4 * 6 * WIDTH} bytes from {4 * (6 + WIDTH)}"]
    assert split.report.loop_parameters == 0


class Centred(nn.Module):
    """Subtracts the mean over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, latent: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        prompt = self.layer(prompt)
        return latent + (prompt - prompt.mean(0, keepdim=True)).mean(1, keepdim=True)


def test_values_that_mix_the_batch_stay_with_the_reason() -> None:
    """Rule 3."""
    split = hoist(graph_of(Centred(), (LATENT, PROMPT)))
    assert {k.reason for k in split.report.kept} == {"its rows are not proven independent"}
    assert [m.shape for m in split.report.moved] == [("batch", 5, WIDTH)]  # the linear before the mean
    assert "mean.dim" in operations(split.loop) and "linear.default" not in operations(split.loop)


class Both(nn.Module):
    """Prompt and step together, in two types."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, latent: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        mixed = self.layer(prompt.mean(1) * timestep.expand(latent.shape[0])[:, None] / 1000)
        return latent + mixed[:, None] + (latent.half() * mixed.half()[:, None]).float()


def test_prompt_and_step_are_computed_for_all_steps_in_one_call() -> None:
    graph = graph_of(Both(), INPUTS)
    split = hoist(graph)
    assert split.schedule is not None
    assert [(p.name, p.shape) for p in split.schedule.inputs] == [("timestep", ("steps",)), ("prompt", ("batch", 5, WIDTH))]
    names = ["schedule_values", "schedule_values_float16"]
    assert [(p.name, p.shape) for p in split.schedule.outputs] == [(name, ("steps*batch", WIDTH)) for name in names]
    timesteps = torch.tensor([900.0, 300.0, 1.0])
    inputs = example(INPUTS, 2)
    packed = run(split.schedule, {"timestep": timesteps, "prompt": inputs["prompt"]})["schedule_values"]
    for step in range(3):
        whole = run(graph, {**inputs, "timestep": timesteps[step : step + 1]})["out"]
        assert distance(run_split(split, inputs, timesteps, step)["out"], whole) < 1e-6
    assert packed.shape == (6, WIDTH)


class Passing(nn.Module):
    """Returns a prompt value beside the latent."""

    def forward(self, latent: torch.Tensor, prompt: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return latent * 2, prompt.sin()


def test_a_result_without_the_latent_passes_through() -> None:
    split = hoist(graph_of(Passing(), (LATENT, PROMPT), ("out", "other")))
    assert split.prompt is not None and operations(split.prompt) == ["sin.default"]
    inputs = example((LATENT, PROMPT), 2)
    entering = run(split.prompt, inputs)
    assert torch.equal(run(split.loop, inputs | entering)["other"], inputs["prompt"].sin())


def test_a_graph_without_anything_to_move_is_its_own_loop() -> None:
    split = hoist(graph_of(nn.Linear(WIDTH, WIDTH)))
    assert (split.table, split.schedule, split.prompt, split.report.moved, split.report.kept) == (None, None, None, (), ())
    assert split.report.parameters == split.report.loop_parameters == WIDTH * WIDTH


@pytest.mark.parametrize("count", [1, 4])
def test_the_table_has_a_row_per_step(count: int) -> None:
    split = hoist(graph_of(Modulated(), (LATENT, TIMESTEP)))
    assert split.table is not None
    timesteps = torch.linspace(900, 1, count)
    table = run(split.table, {"timestep": timesteps})["step_values"]
    for row, timestep in zip(table, timesteps, strict=True):
        assert torch.allclose(run(split.table, {"timestep": timestep[None]})["step_values"][0], row)
