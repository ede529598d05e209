"""Ports that numpy can fill: widened outside, the same numbers inside."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dexport.exporter.capture import Input
from dexport.passes.graph import BATCH, Graph, Kind, run
from dexport.passes.ports import widen_ports
from tests.passes.graphs import graph_of


class _Scale(nn.Module):
    """Twice the first input plus the second."""

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return 2 * first + second


def _graph(dtype: torch.dtype, first: Kind) -> Graph:
    inputs = (Input("first", (BATCH, 4), dtype, first), Input("second", (BATCH, 4), dtype, Kind.PROMPT))
    return graph_of(_Scale(), inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_latents_and_what_comes_of_them_are_fp32(dtype: torch.dtype) -> None:
    before = _graph(dtype, Kind.LATENT)
    after = widen_ports(before)
    assert [port.dtype for port in after.outputs] == [torch.float32]
    assert after.inputs[0].dtype is torch.float32
    assert after.inputs[1].dtype is (torch.float32 if dtype is torch.bfloat16 else dtype)
    assert [port.dtype for port in before.inputs] == [dtype, dtype]
    narrow = {port.name: torch.randn(3, 4).to(dtype) for port in before.inputs}
    wide = {port.name: narrow[port.name].to(port.dtype) for port in after.inputs}
    assert torch.equal(run(after, wide)["out"], run(before, narrow)["out"].float())


def test_a_prelude_keeps_fp16_and_loses_bf16() -> None:
    fp16 = _graph(torch.float16, Kind.PROMPT)
    assert widen_ports(fp16) is fp16
    bf16 = widen_ports(_graph(torch.bfloat16, Kind.PROMPT))
    assert {port.dtype for port in (*bf16.inputs, *bf16.outputs)} == {torch.float32}


def test_fp32_is_left_alone() -> None:
    graph = _graph(torch.float32, Kind.LATENT)
    assert widen_ports(graph) is graph
