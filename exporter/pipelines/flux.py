"""FLUX.1: CLIP's pooled vector and T5's hidden states, FluxTransformer2DModel, AutoencoderKL.

The pipeline packs 2x2 latents into one token; schedulers act on each number alone, so packing is part of the denoiser here and the latent
keeps its picture shape outside. The distilled models ("dev") take the guidance scale as an input; "schnell" has none. The negative prompt
of `true_cfg_scale` is not offered.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dexport.exporter.capture import Input
from dexport.exporter.pipelines.autoencoder import decoder_component, latent_scale_factor
from dexport.exporter.pipelines.family import Component, Guidance, Pipeline, Request, Size, Text
from dexport.exporter.pipelines.rotary import FixedTables
from dexport.passes.graph import BATCH, Kind

CLASSES = ("FluxPipeline",)
_T5_TOKENS = {True: 512, False: 256}  # with and without embedded guidance: what the pipeline takes at most, what schnell was trained with
_DEFAULT_STEPS = {True: 28, False: 4}


class PooledEncoder(nn.Module):
    """CLIP text model: ids ["batch", 77] -> pooled vector ["batch", D]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """The hidden state at the end token."""
        return self.model(input_ids).pooler_output  # type: ignore[no-any-return]


class HiddenEncoder(nn.Module):
    """T5 encoder without a mask, as the pipeline calls it: ids ["batch", L] -> hidden states ["batch", L, D]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids_2: torch.Tensor) -> torch.Tensor:
        """Last hidden state."""
        return self.model(input_ids_2)[0]  # type: ignore[no-any-return]


class Denoiser(nn.Module):
    """latent ["batch", C, h, w], one timestep, prompt (and guidance ["batch"]) -> velocity ["batch", C, h, w]."""

    def __init__(self, model: nn.Module, rows: int, columns: int, tokens: int) -> None:
        super().__init__()
        self.model, self.rows, self.columns = model, rows, columns
        ids = torch.zeros(tokens + rows * columns, 3)  # text tokens lie at the origin
        ids[tokens:, 1] = torch.arange(rows).repeat_interleave(columns)
        ids[tokens:, 2] = torch.arange(columns).repeat(rows)
        model.pos_embed = FixedTables(*model.pos_embed(ids))  # type: ignore[operator]

    def forward(
        self,
        latent: torch.Tensor,
        timestep: torch.Tensor,
        prompt_embeds: torch.Tensor,
        pooled_prompt_embeds: torch.Tensor,
        guidance: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Packs, predicts, unpacks."""
        batch, channels = latent.shape[:2]
        cells = latent.reshape(batch, channels, self.rows, 2, self.columns, 2).permute(0, 2, 4, 1, 3, 5)
        ids = latent.new_zeros(1, 3)
        output = self.model(
            hidden_states=cells.reshape(batch, self.rows * self.columns, channels * 4),
            timestep=timestep.expand(batch).to(latent.dtype) / 1000,
            guidance=guidance,
            pooled_projections=pooled_prompt_embeds,
            encoder_hidden_states=prompt_embeds,
            txt_ids=ids,
            img_ids=ids,
            return_dict=False,
        )[0]
        cells = output.reshape(batch, self.rows, self.columns, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
        return cells.reshape(batch, channels, self.rows * 2, self.columns * 2)  # type: ignore[no-any-return]


def open_pipeline(directory: Path, class_name: str) -> Pipeline:
    """Reads the configurations of a FLUX.1 pipeline directory."""
    transformer = _config(directory, "transformer")
    factor, distilled = latent_scale_factor(directory), bool(transformer["guidance_embeds"])
    channels = int(transformer["in_channels"]) // 4
    texts = (
        Text("text_encoder", "tokenizer", int(_config(directory, "text_encoder")["max_position_embeddings"]), "input_ids"),
        Text("text_encoder_2", "tokenizer_2", _T5_TOKENS[distilled], "input_ids_2"),
    )

    def components(size: Size, dtype: torch.dtype) -> tuple[Component, ...]:
        latent = (BATCH, channels, size[0] // factor, size[1] // factor)
        return (
            *_text_encoders(directory, texts),
            _denoiser(transformer, latent, texts[1].length, dtype),
            decoder_component(directory, latent, dtype),
        )

    return Pipeline(
        family="flux",
        directory=directory,
        class_name=class_name,
        components=components,
        texts=texts,
        guidance=Guidance("embedded", 3.5) if distilled else Guidance("none", 0.0),
        latent_shape=lambda size: (channels, size[0] // factor, size[1] // factor),
        default_size=(128 * factor, 128 * factor),  # the pipeline's own default_sample_size
        size_multiple=2 * factor,
        default_steps=_DEFAULT_STEPS[distilled],
        requests=(Request("guidance", "parameter", "guidance_scale"),) if distilled else (),
        schedule_arguments=lambda size, steps: _schedule(directory, (size[0] // factor // 2) * (size[1] // factor // 2), steps),
    )


def _text_encoders(directory: Path, texts: tuple[Text, Text]) -> tuple[Component, Component]:
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    clip, t5 = CLIPTextConfig.from_pretrained(directory / "text_encoder"), T5Config.from_pretrained(directory / "text_encoder_2")
    ids, ids_2 = (Input(text.ids, (BATCH, text.length), torch.int64, Kind.PROMPT) for text in texts)
    return (
        Component("text_encoder", "text_encoder", lambda: CLIPTextModel(clip), PooledEncoder, (ids,), ("pooled_prompt_embeds",)),
        Component("text_encoder_2", "text_encoder_2", lambda: T5EncoderModel(t5), HiddenEncoder, (ids_2,), ("prompt_embeds",)),
    )


def _denoiser(config: Mapping[str, Any], latent: tuple[int | str, ...], tokens: int, dtype: torch.dtype) -> Component:
    from diffusers import FluxTransformer2DModel

    rows, columns = int(latent[2]) // 2, int(latent[3]) // 2
    inputs: tuple[Input, ...] = (
        Input("latent", latent, dtype, Kind.LATENT),
        Input("timestep", (1,), torch.float32, Kind.STEP),
        Input("prompt_embeds", (BATCH, tokens, int(config["joint_attention_dim"])), dtype, Kind.PROMPT),
        Input("pooled_prompt_embeds", (BATCH, int(config["pooled_projection_dim"])), dtype, Kind.PROMPT),
    )
    if config["guidance_embeds"]:
        inputs += (Input("guidance", (BATCH,), torch.float32, Kind.PROMPT),)
    return Component(
        "denoiser",
        "transformer",
        lambda: FluxTransformer2DModel.from_config(config),
        lambda model: Denoiser(model, rows, columns, tokens),
        inputs,
        ("model_output",),
    )


def _schedule(directory: Path, tokens: int, steps: int) -> dict[str, Any]:
    """What the pipeline passes to `set_timesteps`: evenly spaced sigmas, and a shift `mu` that grows with the number of image tokens."""
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    config = json.loads((directory / "scheduler" / "scheduler_config.json").read_text())
    mu = calculate_shift(
        tokens,
        config.get("base_image_seq_len", 256),
        config.get("max_image_seq_len", 4096),
        config.get("base_shift", 0.5),
        config.get("max_shift", 1.15),
    )
    if config.get("use_flow_sigmas"):
        return {"mu": mu}
    return {"sigmas": np.linspace(1.0, 1 / steps, steps), "mu": mu}


def _config(directory: Path, folder: str) -> dict[str, Any]:
    return json.loads((directory / folder / "config.json").read_text())  # type: ignore[no-any-return]
