"""The decoder that image families share: latent to 8-bit pixels as diffusers rounds them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from torch import nn

from dexport.exporter.pipelines.autoencoder import Decoder, decoder_component, latent_scale_factor
from dexport.passes.graph import BATCH
from tests.pipelines import edit_config


class Identity(nn.Module):
    """A decoder that gives back what it gets."""

    def decode(self, latent: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
        return (latent,)


def test_pixels_are_rounded_as_diffusers_rounds_them() -> None:
    values = torch.linspace(-1.2, 1.2, 3 * 40 * 40).reshape(1, 3, 40, 40)
    wanted = VaeImageProcessor().postprocess(values, output_type="np")
    given = Decoder(Identity(), 1.0, 0.0)(values)
    assert given.dtype is torch.uint8 and given.shape == (1, 40, 40, 3)
    assert torch.equal(given, torch.from_numpy((wanted * 255).round()).to(torch.uint8))


def test_latents_are_scaled_and_shifted() -> None:
    latent = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    by_number = Decoder(Identity(), 2.0, 0.25)(latent)
    assert torch.equal(by_number, Decoder(Identity(), 1.0, 0.0)(latent / 2 + 0.25))
    deviations, means = [0.5, 1.0, 2.0], [0.1, 0.0, -0.1]
    by_channel = Decoder(Identity(), 2.0, 0.0, deviations, means)(latent)
    scaled = latent * torch.tensor(deviations).reshape(1, 3, 1, 1) / 2 + torch.tensor(means).reshape(1, 3, 1, 1)
    assert torch.equal(by_channel, Decoder(Identity(), 1.0, 0.0)(scaled))


@pytest.mark.parametrize(
    ("upcast", "dtype", "wide"),
    [(True, torch.float16, True), (False, torch.float16, False), (True, torch.bfloat16, False), (True, torch.float32, False)],
)
def test_a_decoder_that_overflows_in_fp16_stays_wide(pixart: Path, tmp_path: Path, upcast: bool, dtype: torch.dtype, wide: bool) -> None:
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text((pixart / "vae" / "config.json").read_text())
    edit_config(tmp_path / "vae" / "config.json", force_upcast=upcast)
    component = decoder_component(tmp_path, (BATCH, 4, 8, 8), dtype)
    assert component.wide is wide
    assert component.inputs[0].dtype is (torch.float32 if wide else dtype)


def test_one_latent_stands_for_several_pixels(pixart: Path) -> None:
    assert latent_scale_factor(pixart) == 2
