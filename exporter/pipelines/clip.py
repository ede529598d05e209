"""CLIP text encoders as Stable Diffusion pipelines use them: the last or the penultimate hidden states, and the projected pooled vector."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from dexport.exporter.capture import Input
from dexport.exporter.pipelines.family import Component, Text
from dexport.passes.graph import BATCH, Kind

Layer = Literal["last", "penultimate"]
_LONGEST = 1 << 20  # tokenizers without a limit say 10**30


class TextEncoder(nn.Module):
    """ids ["batch", L] -> hidden states ["batch", L, D], or those and the pooled projection ["batch", P]."""

    def __init__(self, model: nn.Module, layer: Layer, pooled: bool) -> None:
        super().__init__()
        self.model, self.layer, self.pooled = model, layer, pooled

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Only the last hidden states pass through the final norm; the pipelines give the model no mask."""
        result = self.model(input_ids, output_hidden_states=self.layer == "penultimate")
        hidden: torch.Tensor = result.last_hidden_state if self.layer == "last" else result.hidden_states[-2]
        return (hidden, result.text_embeds) if self.pooled else hidden


@dataclass(frozen=True)
class Clip:
    """An opened encoder: how text reaches it, how it is captured, elements of a hidden state and of the pooled projection."""

    text: Text
    component: Component
    width: int
    projection: int


def open_clip(
    directory: Path, folder: str, tokenizer: str, layer: Layer, ids: str, hidden: str, pooled: str | None = None, length: int | None = None
) -> Clip:
    """The encoder in `directory / folder`; the folder also names the component.

    Args:
        directory: the pipeline directory.
        folder: subfolder of the encoder.
        tokenizer: subfolder of its tokenizer, which cleans by itself.
        layer: which hidden states the pipeline takes.
        ids: name of the buffer of token ids.
        hidden: name of the buffer of hidden states.
        pooled: name of the buffer of the pooled projection (the encoder has one), or None.
        length: tokens, by default the tokenizer's own maximum.
    """
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig.from_pretrained(directory / folder)
    tokens = length or _length(directory / tokenizer, int(config.max_position_embeddings))
    component = Component(
        folder,
        folder,
        lambda: CLIPTextModelWithProjection(config) if pooled else CLIPTextModel(config),
        lambda model: TextEncoder(model, layer, pooled is not None),
        (Input(ids, (BATCH, tokens), torch.int64, Kind.PROMPT),),
        (hidden, pooled) if pooled else (hidden,),
    )
    return Clip(Text(folder, tokenizer, tokens, ids), component, int(config.hidden_size), int(config.projection_dim or 0))


def _length(tokenizer: Path, positions: int) -> int:
    file = tokenizer / "tokenizer_config.json"
    limit = json.loads(file.read_text()).get("model_max_length", positions) if file.exists() else positions
    return int(limit) if limit < _LONGEST else positions
