"""PixArt-alpha and PixArt-sigma: T5 text encoder, PixArtTransformer2DModel, AutoencoderKL.

The pipelines' resolution binning is ignored: the size asked for is the size generated (pass `use_resolution_binning=False` to diffusers
to compare). The learned-sigma half of the output is dropped, as the pipelines do.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

from dexport.exporter.capture import Input
from dexport.exporter.pipelines.autoencoder import decoder_component, latent_scale_factor
from dexport.exporter.pipelines.family import Component, Guidance, Pipeline, Size, Text
from dexport.passes.graph import BATCH, Kind

CLASSES = ("PixArtAlphaPipeline", "PixArtSigmaPipeline")
_PROMPT_TOKENS = {"PixArtAlphaPipeline": 120, "PixArtSigmaPipeline": 300}  # max_sequence_length of the pipelines


class TextEncoder(nn.Module):
    """T5 encoder: ids and mask ["batch", L] -> hidden states ["batch", L, D]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Last hidden state."""
        return self.model(input_ids, attention_mask=attention_mask)[0]  # type: ignore[no-any-return]


class Denoiser(nn.Module):
    """latent ["batch", C, h, w], one timestep, prompt -> model output ["batch", C, h, w]."""

    def __init__(self, model: nn.Module, size: Size, channels: int, conditioned: bool) -> None:
        super().__init__()
        self.model, self.size, self.channels, self.conditioned = model, size, channels, conditioned

    def forward(
        self, latent: torch.Tensor, timestep: torch.Tensor, prompt_embeds: torch.Tensor, attention_mask: torch.Tensor
    ) -> torch.Tensor:
        """The first C channels of the prediction."""
        batch = latent.shape[0]
        height, width = self.size
        extra: dict[str, torch.Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if self.conditioned:
            extra["resolution"] = torch.tensor([[height, width]], dtype=latent.dtype).expand(batch, 2)
            extra["aspect_ratio"] = torch.tensor([[height / width]], dtype=latent.dtype).expand(batch, 1)
        output = self.model(
            latent,
            encoder_hidden_states=prompt_embeds,
            encoder_attention_mask=attention_mask,
            timestep=timestep.expand(batch),
            added_cond_kwargs=extra,
            return_dict=False,
        )[0]
        return output[:, : self.channels]  # type: ignore[no-any-return]


def open_pipeline(directory: Path, class_name: str) -> Pipeline:
    """Reads the configurations of a PixArt pipeline directory."""
    from diffusers import PixArtTransformer2DModel
    from transformers import T5Config, T5EncoderModel

    transformer = json.loads((directory / "transformer" / "config.json").read_text())
    text_config = T5Config.from_pretrained(directory / "text_encoder")
    factor = latent_scale_factor(directory)
    channels, tokens = int(transformer["in_channels"]), _PROMPT_TOKENS[class_name]
    sample = int(transformer["sample_size"])
    conditioned = transformer.get("use_additional_conditions")
    if conditioned is None:
        conditioned = sample == 128  # the model's own default

    def components(size: Size, dtype: torch.dtype) -> tuple[Component, ...]:
        latent = (BATCH, channels, size[0] // factor, size[1] // factor)
        mask = Input("attention_mask", (BATCH, tokens), torch.int64, Kind.PROMPT)
        return (
            Component(
                "text_encoder",
                "text_encoder",
                lambda: T5EncoderModel(text_config),
                TextEncoder,
                (Input("input_ids", (BATCH, tokens), torch.int64, Kind.PROMPT), mask),
                ("prompt_embeds",),
            ),
            Component(
                "denoiser",
                "transformer",
                lambda: PixArtTransformer2DModel.from_config(transformer),
                lambda model: Denoiser(model, size, channels, bool(conditioned)),
                (
                    Input("latent", latent, dtype, Kind.LATENT),
                    Input("timestep", (1,), torch.float32, Kind.STEP),
                    Input("prompt_embeds", (BATCH, tokens, int(text_config.d_model)), dtype, Kind.PROMPT),
                    mask,
                ),
                ("model_output",),
            ),
            decoder_component(directory, latent, dtype),
        )

    return Pipeline(
        family="pixart",
        directory=directory,
        class_name=class_name,
        components=components,
        texts=(Text("text_encoder", "tokenizer", tokens, "input_ids", "attention_mask", ("lower", "strip")),),
        guidance=Guidance("classifier-free", 4.5),
        latent_shape=lambda size: (channels, size[0] // factor, size[1] // factor),
        default_size=(sample * factor, sample * factor),
        size_multiple=factor * int(transformer["patch_size"]),
        default_steps=20,
    )
