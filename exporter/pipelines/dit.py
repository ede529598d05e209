"""DiT: DiTTransformer2DModel conditioned on a class label, AutoencoderKL.

The learned-sigma half of the output is dropped, as the pipeline does; the unconditional row has the label after the last class.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

from dexport.errors import UserError
from dexport.exporter.capture import Input
from dexport.exporter.pipelines.autoencoder import decoder_component, latent_scale_factor
from dexport.exporter.pipelines.family import Component, Guidance, Pipeline, Request, Size
from dexport.passes.graph import BATCH, Kind

CLASSES = ("DiTPipeline",)
_NULL_CLASS = 1000  # written out in the pipeline, whatever the model's number of classes


class Denoiser(nn.Module):
    """latent ["batch", C, h, w], one timestep, class label ["batch"] -> model output ["batch", C, h, w]."""

    def __init__(self, model: nn.Module, channels: int) -> None:
        super().__init__()
        self.model, self.channels = model, channels

    def forward(self, latent: torch.Tensor, timestep: torch.Tensor, class_label: torch.Tensor) -> torch.Tensor:
        """The first C channels of the prediction."""
        time = timestep.expand(latent.shape[0])
        output = self.model(latent, timestep=time, class_labels=class_label, return_dict=False)[0]
        return output[:, : self.channels]  # type: ignore[no-any-return]


def open_pipeline(directory: Path, class_name: str) -> Pipeline:
    """Reads the configurations of a DiT pipeline directory.

    Asking its components for another size than the default raises UserError: the pipeline has one size.
    """
    from diffusers import DiTTransformer2DModel

    file = directory / "transformer" / "config.json"
    transformer = json.loads(file.read_text())
    factor, channels, sample = latent_scale_factor(directory), int(transformer["in_channels"]), int(transformer["sample_size"])
    default = (sample * factor, sample * factor)

    def components(size: Size, dtype: torch.dtype) -> tuple[Component, ...]:
        if size != default:
            expected, got = f"size {default[0]}x{default[1]}, the only one of {class_name}", f"{size[0]}x{size[1]}"
            raise UserError(str(file), expected=expected, got=got, fix="leave the size out")
        latent = (BATCH, channels, sample, sample)
        denoiser = Component(
            "denoiser",
            "transformer",
            lambda: DiTTransformer2DModel.from_config(transformer),
            lambda model: Denoiser(model, channels),
            (
                Input("latent", latent, dtype, Kind.LATENT),
                Input("timestep", (1,), torch.float32, Kind.STEP),
                Input("class_label", (BATCH,), torch.int64, Kind.PROMPT),
            ),
            ("model_output",),
        )
        return denoiser, decoder_component(directory, latent, dtype)

    return Pipeline(
        family="dit",
        directory=directory,
        class_name=class_name,
        components=components,
        texts=(),
        guidance=Guidance("classifier-free", 4.0),
        latent_shape=lambda size: (channels, sample, sample),
        default_size=default,
        size_multiple=factor * int(transformer["patch_size"]),
        default_steps=50,
        requests=(Request("class_label", "class", negative=_NULL_CLASS),),
    )
