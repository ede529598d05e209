"""Stable Diffusion 1 and 2: one CLIP text encoder, UNet2DConditionModel, AutoencoderKL. The safety checker is not exported."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from dexport.exporter.capture import Input
from dexport.exporter.pipelines.autoencoder import decoder_component, latent_scale_factor
from dexport.exporter.pipelines.clip import open_clip
from dexport.exporter.pipelines.family import Component, Pipeline, Size
from dexport.exporter.pipelines.unet import default_size, guidance_embedding, guidance_of, size_multiple, unet_config
from dexport.passes.graph import BATCH, Kind

CLASSES = ("StableDiffusionPipeline",)


class Denoiser(nn.Module):
    """latent ["batch", C, h, w], one timestep, prompt ["batch", L, D], guidance ["batch"] if distilled -> output like the latent."""

    def __init__(self, model: nn.Module, guidance_width: int | None) -> None:
        super().__init__()
        self.model, self.guidance_width = model, guidance_width

    def forward(
        self, latent: torch.Tensor, timestep: torch.Tensor, prompt_embeds: torch.Tensor, guidance: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The model's prediction."""
        condition = None
        if guidance is not None and self.guidance_width is not None:
            condition = guidance_embedding(guidance, self.guidance_width, latent.dtype)
        time = timestep.expand(latent.shape[0])
        return self.model(latent, time, encoder_hidden_states=prompt_embeds, timestep_cond=condition, return_dict=False)[0]  # type: ignore[no-any-return]


def open_pipeline(directory: Path, class_name: str) -> Pipeline:
    """Reads the configurations of a Stable Diffusion pipeline directory."""
    from diffusers import UNet2DConditionModel

    unet = unet_config(directory, addition=None)
    clip = open_clip(directory, "text_encoder", "tokenizer", "last", "input_ids", "prompt_embeds")
    guidance, guidance_inputs, requests = guidance_of(unet, 7.5)
    factor, channels = latent_scale_factor(directory), int(unet["in_channels"])

    def components(size: Size, dtype: torch.dtype) -> tuple[Component, ...]:
        latent = (BATCH, channels, size[0] // factor, size[1] // factor)
        inputs = (
            Input("latent", latent, dtype, Kind.LATENT),
            Input("timestep", (1,), torch.float32, Kind.STEP),
            Input("prompt_embeds", (BATCH, clip.text.length, clip.width), dtype, Kind.PROMPT),
            *guidance_inputs,
        )
        denoiser = Component(
            "denoiser",
            "unet",
            lambda: UNet2DConditionModel.from_config(unet),
            lambda model: Denoiser(model, unet.get("time_cond_proj_dim")),
            inputs,
            ("model_output",),
        )
        return clip.component, denoiser, decoder_component(directory, latent, dtype)

    return Pipeline(
        family="stable-diffusion",
        directory=directory,
        class_name=class_name,
        components=components,
        texts=(clip.text,),
        guidance=guidance,
        latent_shape=lambda size: (channels, size[0] // factor, size[1] // factor),
        default_size=default_size(unet, factor),
        size_multiple=size_multiple(factor),
        default_steps=50,
        requests=requests,
        scheduler_settings={"steps_offset": 1, "clip_sample": False},  # what the pipeline's constructor sets
    )
