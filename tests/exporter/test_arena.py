"""The most that is alive at once, by hand, on graphs of a few nodes."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from dexport.exporter.arena import arena_bytes
from dexport.exporter.capture import Input, capture
from dexport.passes.graph import BATCH, Graph, Kind, Weight

ROW = 4 * 64  # a value of 64 numbers in fp32


def graph(module: nn.Module, *, dtype: torch.dtype = torch.float32, shape: tuple[int, ...] = (64,)) -> Graph:
    x = Input("x", (BATCH, *shape), dtype, Kind.LATENT)
    return capture("tiny", module.to(dtype), (x,), ("y",), lambda path, t: Weight(tuple(t.shape), t.dtype, lambda: t, path))


class Chain(nn.Module):
    """linear -> three elementwise operations -> linear."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.tanh(self.a(x).mul(2).add(1)))


class Residual(Chain):
    """A value that is read twice stays until its second reader."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.a(x)
        return h + torch.tanh(self.b(torch.tanh(h)))


class Views(Chain):
    """Views have no memory of their own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x).reshape(-1, 8, 8).transpose(1, 2).transpose(1, 2).reshape(-1, 64))


class Attention(nn.Module):
    """Self-attention of one head."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = x * 2, x * 3, x * 4
        return torch.tanh(functional.scaled_dot_product_attention(q, k, v) * 2)


def test_elementwise_operations_are_fused_and_in_place() -> None:
    """Only the last of the three is stored, in the memory of the product that it reads; the outputs are buffers of the program."""
    assert arena_bytes(graph(Chain()), {BATCH: 3}) == 3 * ROW


def test_what_is_read_later_stays() -> None:
    """At the second product its operand, its result and the residual are alive."""
    assert arena_bytes(graph(Residual()), {BATCH: 1}) == 3 * ROW


def test_views_share_memory() -> None:
    assert arena_bytes(graph(Views()), {BATCH: 1}) == ROW


def test_attention_that_nobody_fuses_stores_its_scores() -> None:
    """Queries, keys, values and the result in both cases; in fp32, and for wide heads, the scores before and after the softmax."""
    for dtype, head, stored in ((torch.float16, 64, 0), (torch.float16, 512, 2), (torch.float32, 64, 2)):
        tokens, size = 32, dtype.itemsize
        found = arena_bytes(graph(Attention(), dtype=dtype, shape=(1, tokens, head)), {BATCH: 2})
        assert found == 2 * size * (4 * tokens * head + stored * tokens * tokens)
