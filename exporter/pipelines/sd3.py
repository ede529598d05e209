"""Stable Diffusion 3: two CLIP text encoders with projection, T5 (may be absent), SD3Transformer2DModel, AutoencoderKL."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dexport.exporter.capture import Input
from dexport.exporter.pipelines.autoencoder import decoder_component, latent_scale_factor
from dexport.exporter.pipelines.clip import open_clip
from dexport.exporter.pipelines.family import Component, Guidance, Pipeline, Size, Text
from dexport.passes.graph import BATCH, Kind

CLASSES = ("StableDiffusion3Pipeline",)
_T5_TOKENS = 256  # max_sequence_length of the pipeline


class T5(nn.Module):
    """ids ["batch", L] -> hidden states ["batch", L, D]; the pipeline gives T5 no mask."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Last hidden state."""
        return self.model(input_ids)[0]  # type: ignore[no-any-return]


class Denoiser(nn.Module):
    """latent ["batch", C, h, w], one timestep, the encoders' outputs -> model output like the latent.

    The prompt is the CLIP states side by side, zeros up to the width of T5, then the T5 states as further tokens (zeros without T5).
    """

    def __init__(self, model: nn.Module, width: int) -> None:
        super().__init__()
        self.model, self.width = model, width

    def forward(
        self,
        latent: torch.Tensor,
        timestep: torch.Tensor,
        prompt_embeds: torch.Tensor,
        prompt_embeds_2: torch.Tensor,
        pooled_embeds: torch.Tensor,
        pooled_embeds_2: torch.Tensor,
        prompt_embeds_3: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The velocity prediction."""
        batch, tokens = prompt_embeds.shape[:2]
        used = prompt_embeds.shape[2] + prompt_embeds_2.shape[2]
        zero = torch.zeros(1, 1, 1, dtype=prompt_embeds.dtype)
        clip = torch.cat([prompt_embeds, prompt_embeds_2, zero.expand(batch, tokens, self.width - used)], dim=-1)
        t5 = zero.expand(batch, _T5_TOKENS, self.width) if prompt_embeds_3 is None else prompt_embeds_3
        return self.model(  # type: ignore[no-any-return]
            hidden_states=latent,
            timestep=timestep.expand(latent.shape[0]),
            encoder_hidden_states=torch.cat([clip, t5], dim=-2),
            pooled_projections=torch.cat([pooled_embeds, pooled_embeds_2], dim=-1),
            return_dict=False,
        )[0]


def open_pipeline(directory: Path, class_name: str) -> Pipeline:
    """Reads the configurations of a Stable Diffusion 3 pipeline directory."""
    from diffusers import SD3Transformer2DModel

    transformer = json.loads((directory / "transformer" / "config.json").read_text())
    scheduler = json.loads((directory / "scheduler" / "scheduler_config.json").read_text())
    first = open_clip(directory, "text_encoder", "tokenizer", "penultimate", "input_ids", "prompt_embeds", "pooled_embeds")
    tokens = first.text.length  # the pipeline asks the first tokenizer for both
    second = open_clip(
        directory, "text_encoder_2", "tokenizer_2", "penultimate", "input_ids_2", "prompt_embeds_2", "pooled_embeds_2", length=tokens
    )
    t5 = _t5(directory)
    factor, channels, patch = latent_scale_factor(directory), int(transformer["in_channels"]), int(transformer["patch_size"])
    width, sample = int(transformer["joint_attention_dim"]), int(transformer["sample_size"])

    def components(size: Size, dtype: torch.dtype) -> tuple[Component, ...]:
        latent = (BATCH, channels, size[0] // factor, size[1] // factor)

        def prompt(name: str, *shape: int) -> Input:
            return Input(name, (BATCH, *shape), dtype, Kind.PROMPT)

        inputs = (
            Input("latent", latent, dtype, Kind.LATENT),
            Input("timestep", (1,), torch.float32, Kind.STEP),
            prompt("prompt_embeds", tokens, first.width),
            prompt("prompt_embeds_2", tokens, second.width),
            prompt("pooled_embeds", first.projection),
            prompt("pooled_embeds_2", second.projection),
            *([prompt("prompt_embeds_3", _T5_TOKENS, width)] if t5 else []),
        )
        denoiser = Component(
            "denoiser",
            "transformer",
            lambda: SD3Transformer2DModel.from_config(transformer),
            lambda model: Denoiser(model, width),
            inputs,
            ("model_output",),
        )
        encoders = (first.component, second.component, *([t5[1]] if t5 else []))
        return *encoders, denoiser, decoder_component(directory, latent, dtype)

    def schedule(size: Size, steps: int) -> Mapping[str, Any]:
        if not scheduler.get("use_dynamic_shifting"):
            return {}
        return {"mu": _shift((size[0] // factor // patch) * (size[1] // factor // patch), scheduler)}

    return Pipeline(
        family="stable-diffusion-3",
        directory=directory,
        class_name=class_name,
        components=components,
        texts=(first.text, second.text, *([t5[0]] if t5 else [])),
        guidance=Guidance("classifier-free", 7.0),
        latent_shape=lambda size: (channels, size[0] // factor, size[1] // factor),
        default_size=(sample * factor, sample * factor),
        size_multiple=factor * patch,
        default_steps=28,
        schedule_arguments=schedule,
    )


def _t5(directory: Path) -> tuple[Text, Component] | None:
    from transformers import T5Config, T5EncoderModel

    index = json.loads((directory / "model_index.json").read_text())
    if index.get("text_encoder_3", [None])[0] is None:
        return None
    config = T5Config.from_pretrained(directory / "text_encoder_3")
    ids = Input("input_ids_3", (BATCH, _T5_TOKENS), torch.int64, Kind.PROMPT)
    component = Component("text_encoder_3", "text_encoder_3", lambda: T5EncoderModel(config), T5, (ids,), ("prompt_embeds_3",))
    return Text("text_encoder_3", "tokenizer_3", _T5_TOKENS, "input_ids_3"), component


def _shift(tokens: int, scheduler: Mapping[str, Any]) -> float:
    """The shift of the schedule, linear in the number of image tokens (`calculate_shift` of the pipelines)."""
    low, high = scheduler.get("base_image_seq_len", 256), scheduler.get("max_image_seq_len", 4096)
    bottom, top = scheduler.get("base_shift", 0.5), scheduler.get("max_shift", 1.16)
    slope = (top - bottom) / (high - low)
    return float(tokens * slope + bottom - slope * low)
