"""What the pipelines around UNet2DConditionModel share: sizes, and the embedding of a guidance scale that the model takes as an input."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch

from dexport.errors import UserError
from dexport.exporter.capture import Input
from dexport.exporter.pipelines.family import Guidance, Request, Size
from dexport.passes.graph import BATCH, Kind

_DIVISOR = 8  # the pipelines refuse sizes that are no multiple, whatever the autoencoder


def unet_config(directory: Path, addition: str | None) -> dict[str, Any]:
    """The denoiser's configuration, if it is one that a text-to-image pipeline can drive.

    Args:
        directory: the pipeline directory.
        addition: the additional embedding that the pipeline feeds ("text_time" for SDXL).

    Raises:
        UserError: the denoiser wants conditions that the pipeline does not give.
    """
    file = directory / "unet" / "config.json"
    config: dict[str, Any] = json.loads(file.read_text())
    wanted = {"addition_embed_type": addition, "class_embed_type": None, "encoder_hid_dim_type": None}
    for name, expected in wanted.items():
        if config.get(name) != expected:
            fix = "build it with the pipeline class that it was trained for"
            raise UserError(str(file), expected=f"{name} {expected}", got=f"{config.get(name)}", fix=fix)
    return config


def default_size(config: dict[str, Any], factor: int) -> Size:
    """Height and width in pixels of a pipeline call that names none."""
    sample = config["sample_size"]
    height, width = sample if isinstance(sample, list | tuple) else (sample, sample)
    return int(height) * factor, int(width) * factor


def size_multiple(factor: int) -> int:
    """What height and width must be divisible by, in pixels."""
    return math.lcm(_DIVISOR, factor)


def guidance_of(config: dict[str, Any], default: float) -> tuple[Guidance, tuple[Input, ...], tuple[Request, ...]]:
    """How the model is guided: by two rows per picture, or, if it was distilled, by the scale as an input."""
    if config.get("time_cond_proj_dim") is None:
        return Guidance("classifier-free", default), (), ()
    scale = Input("guidance", (BATCH,), torch.float32, Kind.PROMPT)
    return Guidance("embedded", default), (scale,), (Request("guidance", "parameter", "guidance_scale"),)


def guidance_embedding(guidance: torch.Tensor, width: int, dtype: torch.dtype) -> torch.Tensor:
    """Sinusoidal embedding ["batch", width] of guidance scales ["batch"], as latent consistency models take it.

    The scale is counted from 1 (no guidance) and multiplied by 1000; frequencies run from 1 to 1e-4.
    Luo et al., "Latent Consistency Models", 2023, section 4.1; the form is that of get_guidance_scale_embedding in diffusers.
    """
    half = width // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * -(torch.log(torch.tensor(10000.0)) / (half - 1)))
    angles = ((guidance - 1) * 1000.0)[:, None] * frequencies[None, :]
    waves = torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)
    if width % 2:
        waves = torch.cat([waves, torch.zeros(1, 1).expand(waves.shape[0], 1)], dim=1)
    return waves.to(dtype)
