"""A block with two attentions for tests: to itself, and to a prompt."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from dexport.exporter.capture import Input
from dexport.passes.graph import BATCH, Kind
from tests.passes.graphs import LATENT, PROMPT

INPUTS = (LATENT, PROMPT, Input("mask", (BATCH, 1, 1, 5), torch.float32, Kind.PROMPT))


class Attentions(nn.Module):
    """Two heads; the queries of the attention to the prompt are normed first."""

    def __init__(self, head: int = 16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = head
        self.own, self.text = (
            nn.ModuleDict({"to_q": nn.Linear(inputs, 2 * head), "to_k": nn.Linear(8, 2 * head), "to_v": nn.Linear(8, 2 * head)})
            for inputs in (8, 2 * head)
        )
        self.norm = nn.LayerNorm(head)

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (2, self.head)).transpose(1, 2)

    def forward(self, latent: torch.Tensor, prompt: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        own = (self._heads(self.own[key](latent)) for key in ("to_q", "to_k", "to_v"))
        x = scaled_dot_product_attention(*own, scale=0.3).transpose(1, 2).flatten(2)
        query = self.norm(self._heads(self.text["to_q"](x)))
        key, value = (self._heads(self.text[name](prompt)) for name in ("to_k", "to_v"))
        return scaled_dot_product_attention(query, key, value, attn_mask=mask)
