"""The AutoencoderKL decoder that image families share: latent -> 8-bit pixels, with latent scale and shift inside."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

from dexport.exporter.capture import Input
from dexport.exporter.pipelines.family import Component
from dexport.passes.graph import Dim, Kind


class Decoder(nn.Module):
    """latent ["batch", C, h, w] -> image ["batch", H, W, 3] uint8, rounded as diffusers' image processor rounds."""

    def __init__(self, model: nn.Module, scale: float, shift: float) -> None:
        super().__init__()
        self.model, self.scale, self.shift = model, scale, shift

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """Decodes, maps -1..1 to 0..255 and rounds half to even."""
        pixels = self.model.decode(latent / self.scale + self.shift, return_dict=False)[0]  # type: ignore[operator]
        unit = (pixels * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
        return (unit.float() * 255).round().to(torch.uint8)


def decoder_component(directory: Path, latent: tuple[Dim, ...], dtype: torch.dtype) -> Component:
    """The component "vae_decoder" of a pipeline directory with an AutoencoderKL in `vae`.

    A VAE that says `force_upcast` overflows in fp16 and is computed in fp32.
    """
    from diffusers import AutoencoderKL

    config = _config(directory)
    wide = bool(config.get("force_upcast", True)) and dtype is torch.float16
    return Component(
        "vae_decoder",
        "vae",
        lambda: AutoencoderKL.from_config(config),
        lambda model: Decoder(model, float(config["scaling_factor"]), float(config.get("shift_factor") or 0.0)),
        (Input("latent", latent, torch.float32 if wide else dtype, Kind.LATENT),),
        ("image",),
        wide=wide,
    )


def latent_scale_factor(directory: Path) -> int:
    """Pixels per latent along one axis."""
    return int(2 ** (len(_config(directory)["block_out_channels"]) - 1))


def _config(directory: Path) -> dict[str, object]:
    return json.loads((directory / "vae" / "config.json").read_text())  # type: ignore[no-any-return]
