"""Units: which sites belong together, and which nodes their spans hold."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

from dexport.passes.quantization.sites import sites
from dexport.passes.quantization.units import Span, has_rows, spans, unit_name
from tests.passes.graphs import graph_of
from tests.passes.quantization.unit_graphs import denoiser


@pytest.mark.parametrize(
    ("site", "half", "block"),
    [
        ("transformer_blocks.3.attn1.to_out.0", "transformer_blocks.3.attn1", "transformer_blocks.3"),
        ("down_blocks.0.resnets.1.conv1", "down_blocks.0.resnets.1.conv1", "down_blocks.0.resnets.1"),
        (
            "up_blocks.1.attentions.0.transformer_blocks.2.ff.net.0.proj",
            "up_blocks.1.attentions.0.transformer_blocks.2.ff",
            "up_blocks.1.attentions.0.transformer_blocks.2",
        ),
        ("up_blocks.1.attentions.0.proj_in", "up_blocks.1.attentions.0.proj_in", "up_blocks.1.attentions.0"),
        ("proj_out", "proj_out", "proj_out"),
    ],
)
def test_names(site: str, half: str, block: str) -> None:
    assert [unit_name(site, g) for g in ("layer", "half-block", "block")] == [site, half, block]


def test_unknown_granularity() -> None:
    with pytest.raises(ValueError, match="'model' is no unit; there are layer, half-block, block"):
        unit_name("proj_out", "model")


def _spans(granularity: str) -> tuple[Span, ...]:
    loop = denoiser().loop
    return spans(loop, granularity, {site.name for site in sites(loop)})


def test_a_block_ends_at_its_sum() -> None:
    first_in, first, second, out = _spans("block")
    assert [span.name for span in (first_in, first, second, out)] == ["proj_in", "blocks.0", "blocks.1", "proj_out"]
    assert [site.name for site in first.sites] == [f"blocks.0.{n}" for n in ("attn.to_q", "attn.to_out", "up", "down")]
    (output,) = first.outputs
    assert output.target is torch.ops.aten.add.Tensor and output in second.inputs
    assert all(has_rows(node) for node in (*first.inputs, *first.outputs)) and first.reason == ""


def test_half_blocks_end_at_their_sums() -> None:
    found = {span.name: span for span in _spans("half-block")}
    assert list(found) == [
        "proj_in", "blocks.0.attn", "blocks.0.up", "blocks.0.down", "blocks.1.attn", "blocks.1.up", "blocks.1.down", "proj_out"
    ]  # fmt: skip
    assert found["blocks.0.attn"].outputs[0].target is torch.ops.aten.add.Tensor


def test_a_layer_is_its_node() -> None:
    for span in _spans("layer"):
        assert [node.name for node in span.nodes] == [span.sites[0].node] and span.outputs == span.nodes


def test_nodes_follow_from_inputs() -> None:
    """Every value that a span reads is an input, its own, a weight or a constant."""
    for granularity in ("half-block", "block"):
        for span in _spans(granularity):
            known = {*span.nodes, *span.inputs}
            assert all(s in known or s.op == "get_attr" or not has_tensor(s) for n in span.nodes for s in n.all_input_nodes)


def has_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta["val"], torch.Tensor)


def test_only_units_with_wanted_sites() -> None:
    loop = denoiser().loop
    assert [span.name for span in spans(loop, "block", {"blocks.1.down"})] == ["blocks.1"]


def test_a_value_without_rows_is_a_reason() -> None:
    class Folded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(8, 8)

        def forward(self, latent: torch.Tensor) -> torch.Tensor:
            return self.first(latent.flatten(0, 1)).unflatten(0, (-1, 6))

    (span,) = spans(graph_of(Folded()), "block", {"first"})
    assert "has no row per picture" in span.reason
