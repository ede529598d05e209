"""Stable Diffusion XL: two CLIP text encoders, UNet2DConditionModel with the picture's size as a condition, AutoencoderKL.

The size conditions are those of a pipeline call that names none: original and target size are the size asked for, no crop.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

from dexport.exporter.capture import Input
from dexport.exporter.pipelines.autoencoder import decoder_component, latent_scale_factor
from dexport.exporter.pipelines.clip import Clip, open_clip
from dexport.exporter.pipelines.family import Component, Pipeline, Request, Size
from dexport.exporter.pipelines.unet import default_size, guidance_embedding, guidance_of, size_multiple, unet_config
from dexport.passes.graph import BATCH, Kind

CLASSES = ("StableDiffusionXLPipeline",)


class SizeEmbedding(nn.Module):
    """Stands in for the embedding of (original size, crop, target size): a constant row, given to every row of the batch."""

    def __init__(self, embed: nn.Module, size: Size) -> None:
        super().__init__()
        numbers = torch.tensor([*size, 0, 0, *size], dtype=torch.float32)
        self.register_buffer("row", embed(numbers).reshape(1, -1), persistent=False)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Reads only how many rows there are."""
        row = self.row
        assert isinstance(row, torch.Tensor)
        return row.expand(rows.shape[0], -1)


class Denoiser(nn.Module):
    """latent ["batch", C, h, w], one timestep, hidden states of the encoders, pooled ["batch", P], given ["batch"] -> like the latent."""

    def __init__(self, model: nn.Module, guidance_width: int | None, encoders: int, zeros: bool) -> None:
        super().__init__()
        self.model, self.guidance_width, self.encoders, self.zeros = model, guidance_width, encoders, zeros

    def forward(self, latent: torch.Tensor, timestep: torch.Tensor, *conditions: torch.Tensor) -> torch.Tensor:
        """Conditions: hidden states per encoder, pooled, then `given` if `zeros`, then the guidance scale if the model takes it.

        With `zeros`, rows without a prompt of the user's have all text embeddings 0 (`force_zeros_for_empty_prompt`).
        """
        prompt = torch.cat(conditions[: self.encoders], dim=-1)
        pooled, *rest = conditions[self.encoders :]
        if self.zeros:
            given = rest.pop(0).to(prompt.dtype)
            prompt, pooled = prompt * given[:, None, None], pooled * given[:, None]
        condition = guidance_embedding(rest[0], self.guidance_width, latent.dtype) if self.guidance_width else None
        added = {"text_embeds": pooled, "time_ids": pooled[:, 0]}  # SizeEmbedding reads the number of rows only
        time = timestep.expand(latent.shape[0])
        return self.model(  # type: ignore[no-any-return]
            latent, time, encoder_hidden_states=prompt, timestep_cond=condition, added_cond_kwargs=added, return_dict=False
        )[0]


def open_pipeline(directory: Path, class_name: str) -> Pipeline:
    """Reads the configurations of a Stable Diffusion XL pipeline directory; the first text encoder may be absent."""
    unet = unet_config(directory, addition="text_time")
    index = json.loads((directory / "model_index.json").read_text())
    clips = _clips(directory, index)
    zeros = bool(index.get("force_zeros_for_empty_prompt", True))
    guidance, guidance_inputs, guidance_requests = guidance_of(unet, 5.0)
    zeros = zeros and guidance.kind == "classifier-free"
    factor, channels = latent_scale_factor(directory), int(unet["in_channels"])
    width = unet.get("time_cond_proj_dim")

    def components(size: Size, dtype: torch.dtype) -> tuple[Component, ...]:
        latent = (BATCH, channels, size[0] // factor, size[1] // factor)
        hidden = tuple(Input(c.component.outputs[0], (BATCH, c.text.length, c.width), dtype, Kind.PROMPT) for c in clips)
        inputs = (
            Input("latent", latent, dtype, Kind.LATENT),
            Input("timestep", (1,), torch.float32, Kind.STEP),
            *hidden,
            Input("pooled_embeds", (BATCH, clips[-1].projection), dtype, Kind.PROMPT),
            *([Input("given", (BATCH,), torch.float32, Kind.PROMPT)] if zeros else []),
            *guidance_inputs,
        )
        denoiser = Component(
            "denoiser",
            "unet",
            lambda: _unet(unet, size),
            lambda model: Denoiser(model, width, len(clips), zeros),
            inputs,
            ("model_output",),
        )
        return *(c.component for c in clips), denoiser, decoder_component(directory, latent, dtype, per_channel=True)

    return Pipeline(
        family="stable-diffusion-xl",
        directory=directory,
        class_name=class_name,
        components=components,
        texts=tuple(c.text for c in clips),
        guidance=guidance,
        latent_shape=lambda size: (channels, size[0] // factor, size[1] // factor),
        default_size=default_size(unet, factor),
        size_multiple=size_multiple(factor),
        default_steps=50,
        requests=(*([Request("given", "given")] if zeros else []), *guidance_requests),
    )


def _clips(directory: Path, index: dict[str, list[str | None]]) -> tuple[Clip, ...]:
    second = open_clip(directory, "text_encoder_2", "tokenizer_2", "penultimate", "input_ids_2", "prompt_embeds_2", "pooled_embeds")
    if index.get("text_encoder", [None])[0] is None:
        return (second,)
    return open_clip(directory, "text_encoder", "tokenizer", "penultimate", "input_ids", "prompt_embeds"), second


def _unet(config: dict[str, object], size: Size) -> nn.Module:
    from diffusers import UNet2DConditionModel

    model: nn.Module = UNet2DConditionModel.from_config(config)
    embed = model.add_time_proj
    assert isinstance(embed, nn.Module)
    model.add_time_proj = SizeEmbedding(embed, size)
    return model
