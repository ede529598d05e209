"""Wan text-to-video: UMT5 text encoder, WanTransformer3DModel, AutoencoderKLWan decoded frame by frame.

The text encoder's output is zeroed where the prompt is padding, as the pipeline does. Timesteps per token (`expand_timesteps`) are all
equal when no picture is given, so one timestep per step serves. Two experts that take turns are refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dexport.errors import UserError
from dexport.exporter.capture import Input
from dexport.exporter.pipelines.family import Component, Guidance, Pipeline, Size, Text
from dexport.exporter.pipelines.rotary import FixedTables
from dexport.exporter.pipelines.wan_decoder import cache_shapes, decode_calls, decoder_components, pixel_buffers
from dexport.passes.graph import BATCH, Kind

CLASSES = ("WanPipeline",)
_TOKENS = 512
_FRAMES = 81
_FRAMES_PER_SECOND = 16


class TextEncoder(nn.Module):
    """UMT5 encoder: ids and mask ["batch", L] -> hidden states ["batch", L, D]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Last hidden state."""
        return self.model(input_ids, attention_mask)[0]  # type: ignore[no-any-return]


class Denoiser(nn.Module):
    """latent ["batch", C, F, h, w], one timestep, prompt -> velocity ["batch", C, F, h, w]."""

    def __init__(self, model: nn.Module, latent: tuple[int, ...]) -> None:
        super().__init__()
        self.model = model
        model.rope = FixedTables(*model.rope(torch.empty(()).expand(1, *latent)))  # type: ignore[operator]

    def forward(
        self, latent: torch.Tensor, timestep: torch.Tensor, prompt_embeds: torch.Tensor, attention_mask: torch.Tensor
    ) -> torch.Tensor:
        """The model with padding of the prompt set to zero."""
        return self.model(  # type: ignore[no-any-return]
            hidden_states=latent,
            timestep=timestep.expand(latent.shape[0]),
            encoder_hidden_states=prompt_embeds * attention_mask.unsqueeze(-1).to(prompt_embeds.dtype),
            return_dict=False,
        )[0]


def open_pipeline(directory: Path, class_name: str, frames: int = _FRAMES) -> Pipeline:
    """Reads the configurations of a Wan text-to-video pipeline directory.

    Args:
        frames: pictures of the video; one more than a multiple of 4, the frames that one latent stands for.

    Raises:
        UserError: the number of frames is impossible, or the pipeline has two experts.
    """
    _refuse_experts(directory)
    vae, transformer = _config(directory, "vae"), _config(directory, "transformer")
    factor, per_latent = int(vae["scale_factor_spatial"]), int(vae["scale_factor_temporal"])
    if frames < 1 or frames % per_latent != 1:
        near = max(frames // per_latent, 0) * per_latent + 1
        raise UserError(
            "frames", expected=f"one more than a multiple of {per_latent}", got=str(frames), fix=f"ask for {near} or {near + per_latent}"
        )
    latent_frames = (frames - 1) // per_latent + 1
    channels = int(transformer["in_channels"])

    def latent_shape(size: Size) -> tuple[int, ...]:
        return channels, latent_frames, size[0] // factor, size[1] // factor

    def components(size: Size, dtype: torch.dtype) -> tuple[Component, ...]:
        latent = latent_shape(size)
        return *_models(directory, transformer, latent, dtype), *decoder_components(vae, (BATCH, *latent), dtype)

    return Pipeline(
        family="wan",
        directory=directory,
        class_name=class_name,
        components=components,
        texts=(Text("text_encoder", "tokenizer", _TOKENS, "input_ids", "attention_mask", ("html", "html", "whitespace", "strip")),),
        guidance=Guidance("classifier-free", 5.0),
        latent_shape=latent_shape,
        default_size=(480, 832),
        size_multiple=factor * int(transformer["patch_size"][1]),
        default_steps=50,
        decode=decode_calls(latent_frames, len(cache_shapes(vae, 1, 1))),
        results=pixel_buffers(latent_frames),
        frames=frames,
        frames_per_second=_FRAMES_PER_SECOND,
    )


def _refuse_experts(directory: Path) -> None:
    index = json.loads((directory / "model_index.json").read_text())
    if index.get("boundary_ratio") is not None or (index.get("transformer_2") or [None])[0] is not None:
        raise UserError(
            str(directory / "model_index.json"),
            expected="one denoiser",
            got="two experts that take turns (transformer_2, boundary_ratio)",
            fix="use a Wan pipeline with one transformer, such as Wan2.1",
        )


def _models(directory: Path, transformer: Mapping[str, Any], latent: tuple[int, ...], dtype: torch.dtype) -> tuple[Component, Component]:
    from diffusers import WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    text = UMT5Config.from_pretrained(directory / "text_encoder")
    mask = Input("attention_mask", (BATCH, _TOKENS), torch.int64, Kind.PROMPT)
    return (
        Component(
            "text_encoder",
            "text_encoder",
            lambda: UMT5EncoderModel(text),
            TextEncoder,
            (Input("input_ids", (BATCH, _TOKENS), torch.int64, Kind.PROMPT), mask),
            ("prompt_embeds",),
        ),
        Component(
            "denoiser",
            "transformer",
            lambda: WanTransformer3DModel.from_config(transformer),
            lambda model: Denoiser(model, latent),
            (
                Input("latent", (BATCH, *latent), dtype, Kind.LATENT),
                Input("timestep", (1,), torch.float32, Kind.STEP),
                Input("prompt_embeds", (BATCH, _TOKENS, int(transformer["text_dim"])), dtype, Kind.PROMPT),
                mask,
            ),
            ("model_output",),
        ),
    )


def _config(directory: Path, folder: str) -> dict[str, Any]:
    return json.loads((directory / folder / "config.json").read_text())  # type: ignore[no-any-return]
