"""The AutoencoderKL decoder that image families share: latent -> 8-bit pixels, with latent scale and shift inside."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dexport.exporter.capture import Input
from dexport.exporter.pipelines.family import Component
from dexport.passes.graph import Dim, Kind


class Decoder(nn.Module):
    """latent ["batch", C, h, w] -> image ["batch", H, W, 3] uint8, rounded as diffusers' image processor rounds.

    The latent is scaled by one number, or by one per channel (lists of C numbers).
    """

    def __init__(self, model: nn.Module, scale: float, shift: float, deviations: Sequence[float] = (), means: Sequence[float] = ()) -> None:
        super().__init__()
        self.model, self.scale, self.shift = model, scale, shift
        self.deviations, self.means = tuple(deviations), tuple(means)

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """Decodes, maps -1..1 to 0..255 and rounds half to even."""
        if self.deviations:
            latent = latent * latent.new_tensor(self.deviations).reshape(1, -1, 1, 1)
        latent = latent / self.scale + self.shift
        if self.means:
            latent = latent + latent.new_tensor(self.means).reshape(1, -1, 1, 1)
        pixels = self.model.decode(latent, return_dict=False)[0]  # type: ignore[operator]
        unit = (pixels * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
        return (unit.float() * 255).round().to(torch.uint8)  # type: ignore[no-any-return]


def decoder_component(directory: Path, latent: tuple[Dim, ...], dtype: torch.dtype, per_channel: bool = False) -> Component:
    """The component "vae_decoder" of a pipeline directory with an AutoencoderKL in `vae`.

    A VAE that says `force_upcast` overflows in fp16 and is computed in fp32.

    Args:
        directory: the pipeline directory.
        latent: shape of the latent.
        dtype: of the build.
        per_channel: the pipeline applies `latents_mean` and `latents_std` where the configuration has both.
    """
    from diffusers import AutoencoderKL

    config = _config(directory)
    wide = bool(config.get("force_upcast", True)) and dtype is torch.float16
    means, deviations = config.get("latents_mean"), config.get("latents_std")
    channels = (deviations, means) if per_channel and means and deviations else ((), ())
    return Component(
        "vae_decoder",
        "vae",
        lambda: AutoencoderKL.from_config(config),
        lambda model: Decoder(model, config["scaling_factor"], config.get("shift_factor") or 0.0, *channels),
        (Input("latent", latent, torch.float32 if wide else dtype, Kind.LATENT),),
        ("image",),
        wide=wide,
    )


def latent_scale_factor(directory: Path) -> int:
    """Pixels per latent along one axis."""
    return int(2 ** (len(_config(directory)["block_out_channels"]) - 1))


def _config(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "vae" / "config.json").read_text())  # type: ignore[no-any-return]
