"""Operations read off a graph: counted by hand for one linear, convolution and attention, and for quantized forms."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dexport.exporter.capture import Input
from dexport.exporter.operations import Form, Operations, Planned, form_of, planned_form
from dexport.passes.graph import BATCH, STEPS, Graph, Kind
from dexport.passes.hoist import hoist
from dexport.passes.quantization.recipe_file import find_recipe
from dexport.targets.latency import Work, attention_operations
from tests.exporter.spellings.quantized_graphs import Form as Quantization
from tests.exporter.spellings.quantized_graphs import quantized
from tests.passes.graphs import LATENT as LATENT_OF_8
from tests.passes.graphs import PROMPT, TIMESTEP, graph_of

TOKENS, WIDTH, HEADS, LATENT = 6, 64, 2, 8


class Block(nn.Module):
    """A residual linear behind a norm, self attention of 2 heads of 32, and a convolution of its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.wide = nn.Linear(WIDTH, 4 * WIDTH)
        self.conv = nn.Conv1d(4 * WIDTH, 16, 3, padding=1, groups=4)

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        x = latent + self.mix(self.norm(latent))
        heads = x.unflatten(2, (HEADS, WIDTH // HEADS)).transpose(1, 2)
        y = nn.functional.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2).flatten(2)
        return self.conv(self.wide(y).transpose(1, 2))


@pytest.fixture(scope="module")
def graph() -> Graph:
    torch.manual_seed(0)
    inputs = (Input("latent", (BATCH, TOKENS, WIDTH), torch.float16, Kind.LATENT),)
    return graph_of(Block().half(), inputs)


def test_every_operation_by_hand(graph: Graph) -> None:
    rows = 3
    mix, attention, wide, conv, between = Operations(graph, {BATCH: rows}).all()
    tokens, two = rows * TOKENS, 2
    assert (mix.operations, mix.bytes) == (2 * tokens * WIDTH**2, two * (WIDTH**2 + 2 * tokens * WIDTH))
    assert attention.operations == pytest.approx(rows * attention_operations(TOKENS, TOKENS, HEADS, WIDTH // HEADS))
    assert attention.bytes == two * 4 * tokens * WIDTH
    assert (wide.operations, wide.bytes) == (2 * tokens * 4 * WIDTH**2, two * (4 * WIDTH**2 + 5 * tokens * WIDTH))
    assert (conv.operations, conv.bytes) == (2 * tokens * 16 * 3 * WIDTH, two * (16 * 3 * WIDTH + tokens * (4 * WIDTH + 16)))
    assert {w.format for w in (mix, attention, wide, conv)} == {"fp16"}
    # The latent and the linear's result are read; the norm's result and the sum are written.
    assert (between.kind, between.operations, between.bytes) == ("traffic", 0, two * 4 * tokens * WIDTH)


def test_batches_scale_all_but_the_weights(graph: Graph) -> None:
    one, two = (Operations(graph, {BATCH: rows}).all() for rows in (1, 2))
    assert [b.operations for b in two] == [2 * a.operations for a in one]
    weights = 2 * (WIDTH**2 + 4 * WIDTH**2 + 16 * 3 * WIDTH)
    assert sum(b.bytes for b in two) == 2 * sum(a.bytes for a in one) - weights


@pytest.mark.parametrize(
    ("form", "format", "weight_bits", "input_bits"),
    [
        (Quantization(mode="dynamic"), "int8", 8, 8),
        (Quantization(weight="int4", activation="int6", mode="dynamic"), "int8", 8, 8),
        (Quantization(weight="int4", group=16, mode="none"), "fp16", 5, 16),
        (Quantization(weight="int4", group=16, activation="int4", mode="dynamic", block=16), "int4", 5, 4),
        (Quantization(weight="int4", group=16, activation="int8", mode="dynamic"), "int8", 5, 8),
        (Quantization(weight="e4m3", activation="e4m3"), "fp8", 8, 8),
        (Quantization(weight="e2m1", group=16, activation="e2m1", mode="dynamic", block=16, micro="nvfp4"), "nvfp4", 4.5, 4.5),
    ],
    ids=lambda value: value.weight if isinstance(value, Quantization) else "",
)
def test_quantized_linears(graph: Graph, form: Quantization, format: str, weight_bits: float, input_bits: float) -> None:
    found = {w.name: w for w in Operations(quantized(graph, form), {BATCH: 1}).all()}
    plain = Operations(graph, {BATCH: 1}).all()[0]
    (mix, _) = (w for w in found.values() if "quantized_linear" in w.name)
    assert (mix.format, mix.operations) == (format, plain.operations)
    assert mix.bytes == (WIDTH**2 * weight_bits + TOKENS * WIDTH * (input_bits + 16)) / 8


def test_a_branch_is_two_small_products(graph: Graph) -> None:
    operations = Operations(graph, {BATCH: 2})
    node = next(n for n in graph.module.graph.nodes if n.target is torch.ops.aten.linear.default)
    whole, down, up = operations.layer(node, Form("int8", 8, 8), 4)
    assert whole.format == "int8"
    tokens = 2 * TOKENS
    assert down == Work(f"{node.name} branch", "product", 2.0 * tokens * WIDTH * 4, 2.0 * (WIDTH * 4 + tokens * (WIDTH + 4)), "fp16")
    assert up == down  # as many inputs as outputs


def test_forms_of_recipes() -> None:
    assert form_of("int4", "", 64, 0, "bf16") == Form("bf16", 4.25, 16)
    assert form_of("int8", "", 0, 0, "fp32") == Form("fp32", 8, 32)
    assert form_of("int3", "int8", 0, 0, "fp16") == Form("int8", 8, 8)
    assert form_of("nvfp4", "nvfp4", 16, 16, "fp16") == Form("nvfp4", 4.5, 4.5)
    assert form_of("int4", "int4", 64, 64, "fp16") == Form("int4", 4.25, 4)
    assert form_of("int4", "int4", 0, 64, "fp16") == Form("int4", 4, 4)
    assert form_of("int4", "int4", 0, 0, "fp16") == Form("int8", 8, 8), "TensorRT has no product of 4 bits"
    assert form_of("e1m2", "int8", 64, 0, "fp16") == Form("int8", 4.25, 8)


@pytest.mark.parametrize(("recipe", "form"), [("svdquant-w4a4", Form("int4", 4.25, 4)), ("svdquant-w4a8", Form("int8", 4.25, 8))])
def test_planned_forms_of_recipes_with_branches(recipe: str, form: Form) -> None:
    section = find_recipe(recipe).section("denoiser")
    assert section is not None
    assert section.default.low_rank is not None
    assert planned_form(section.default, "fp16") == Planned(form, section.default.low_rank.rank)


class Modulation(nn.Module):
    """What a linear makes of the timestep and the prompt together, and of the timestep alone."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed, self.alone = nn.Linear(8, 16), nn.Linear(4, 8)

    def forward(self, latent: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        angles = timestep.expand(latent.shape[0])[:, None]
        mixed, shift = self.mixed(prompt.mean(1) * angles)[:, None].chunk(2, -1)
        return latent * mixed + shift + self.alone(angles / torch.arange(1, 5))[:, None]


def test_what_is_computed_for_all_steps_at_once_counts_them_all() -> None:
    split = hoist(graph_of(Modulation(), (LATENT_OF_8, TIMESTEP, PROMPT)))
    assert split.table is not None and split.schedule is not None
    steps, batch = 5, 3
    (alone,) = (one for one in Operations(split.table, {STEPS: steps}).all() if one.kind == "product")
    (mixed,) = (one for one in Operations(split.schedule, {STEPS: steps, BATCH: batch}).all() if one.kind == "product")
    assert (alone.operations, alone.bytes) == (2 * steps * 4 * 8, 4 * (4 * 8 + steps * (4 + 8)))
    assert (mixed.operations, mixed.bytes) == (2 * steps * batch * 8 * 16, 4 * (8 * 16 + steps * batch * (8 + 16)))
