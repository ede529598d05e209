"""Wan's video VAE, which decodes one latent frame at a time and remembers features, as three components without hidden state.

    vae_split   latent ["batch", C, F, h, w] -> frame_0 ... ["batch", C, 1, h, w], de-normalised
    vae_first   frame -> pixels ["batch", 1, H, W, 3] uint8, caches
    vae_next    frame, caches -> pixels ["batch", 4, H, W, 3] uint8, caches

Every cache holds the last two frames of a convolution's input. The model starts with fewer and pads with zeros on the fly; zeros in the
cache say the same, so `vae_next` has one form for the second frame and for all later ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from dexport.exporter.capture import Input
from dexport.exporter.pipelines.family import Call, Component
from dexport.passes.graph import BATCH, Kind

_CACHED_FRAMES = 2  # CACHE_T of the model


class Split(nn.Module):
    """De-normalises, applies the pointwise convolution and takes the frames apart."""

    def __init__(self, model: nn.Module, mean: list[float], deviation: list[float]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean).reshape(1, -1, 1, 1, 1))
        self.register_buffer("inverse", 1.0 / torch.tensor(deviation).reshape(1, -1, 1, 1, 1))

    def forward(self, latent: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """One tensor per latent frame."""
        latent = latent / self.inverse.to(latent.dtype) + self.mean.to(latent.dtype)  # type: ignore[operator]
        return self.model.post_quant_conv(latent).split(1, dim=2)  # type: ignore[operator,no-any-return]


class First(nn.Module):
    """The first latent frame: one picture, and caches filled up with zeros."""

    def __init__(self, model: nn.Module, caches: tuple[tuple[int, ...], ...]) -> None:
        super().__init__()
        self.model, self.caches = model, caches

    def forward(self, frame: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Pixels, then the caches."""
        held: list[Any] = [None] * len(self.caches)
        decoded = self.model.decoder(frame, feat_cache=held, feat_idx=[0], first_chunk=True)  # type: ignore[operator]
        full = []
        for cache, shape in zip(held, self.caches, strict=True):
            missing = _CACHED_FRAMES if isinstance(cache, str) else _CACHED_FRAMES - cache.shape[2]
            zeros = frame.new_zeros(frame.shape[0], shape[0], missing, *shape[2:])
            full.append(zeros if isinstance(cache, str) else torch.cat([zeros, cache], dim=2))
        return _pixels(decoded, self.model), *full


class Next(nn.Module):
    """A later latent frame: as many pictures as one latent frame stands for, and the caches renewed."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, frame: torch.Tensor, *caches: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Pixels, then the caches."""
        held = list(caches)
        decoded = self.model.decoder(frame, feat_cache=held, feat_idx=[0])  # type: ignore[operator]
        return _pixels(decoded, self.model), *held


def _pixels(decoded: torch.Tensor, model: nn.Module) -> torch.Tensor:
    """["batch", 3, frames, H, W] in -1..1 -> ["batch", frames, H, W, 3] uint8, rounded as diffusers' video processor rounds."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

    patch = model.config.patch_size  # type: ignore[union-attr]
    if patch is not None:
        decoded = unpatchify(decoded, patch_size=patch)
    unit = (decoded.clamp(-1.0, 1.0) * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 4, 1)
    return (unit.float() * 255).round().to(torch.uint8)


def decoder_components(config: Mapping[str, Any], latent: tuple[int | str, ...], dtype: torch.dtype) -> tuple[Component, ...]:
    """The three components for latents ["batch", C, F, h, w]."""
    from diffusers import AutoencoderKLWan

    channels, frames, height, width = (int(size) for size in latent[1:])
    caches = cache_shapes(config, height, width)
    frame = Input("frame", (BATCH, channels, 1, height, width), dtype, Kind.LATENT)
    held = tuple(Input(f"cache_{i}", (BATCH, *shape), dtype, Kind.LATENT) for i, shape in enumerate(caches))
    produced = ("pixels", *(f"new_cache_{i}" for i in range(len(caches))))  # an ONNX graph cannot have an output named as an input

    def construct() -> nn.Module:
        return AutoencoderKLWan.from_config(config)  # type: ignore[no-any-return]

    return (
        Component(
            "vae_split",
            "vae",
            construct,
            lambda model: Split(model, config["latents_mean"], config["latents_std"]),
            (Input("latent", latent, dtype, Kind.LATENT),),
            tuple(f"frame_{i}" for i in range(frames)),
        ),
        Component("vae_first", "vae", construct, lambda model: First(model, caches), (frame,), produced),
        Component("vae_next", "vae", construct, Next, (frame, *held), produced),
    )


def decode_calls(frames: int, caches: int) -> tuple[Call, ...]:
    """The calls that decode `frames` latent frames with `caches` caches, into the buffers of `pixel_buffers`."""
    held = tuple(f"cache_{i}" for i in range(caches))
    later = tuple(Call("vae_next", (f"frame_{i}", *held), (pixels, *held)) for i, pixels in enumerate(pixel_buffers(frames)) if i)
    return (
        Call("vae_split", ("latent",), tuple(f"frame_{i}" for i in range(frames))),
        Call("vae_first", ("frame_0",), ("pixels_0", *held)),
        *later,
    )


def pixel_buffers(frames: int) -> tuple[str, ...]:
    """Names of the buffers with the decoded pictures, one per latent frame."""
    return tuple(f"pixels_{i}" for i in range(frames))


def cache_shapes(config: Mapping[str, Any], height: int, width: int) -> tuple[tuple[int, ...], ...]:
    """Shapes [C, 2, h, w] of the caches, found by decoding two shapeless frames on the meta device.

    Args:
        height, width: of the latent.
    """
    from diffusers import AutoencoderKLWan

    with torch.device("meta"), torch.no_grad():
        model = AutoencoderKLWan.from_config(config)
        frame = torch.empty(1, int(config["z_dim"]), 1, height, width)
        model.clear_cache()
        held, used = model._feat_map, [0]
        model.decoder(frame, feat_cache=held, feat_idx=used, first_chunk=True)
        model.decoder(frame, feat_cache=held, feat_idx=[0])
    return tuple(tuple(cache.shape[1:]) for cache in held[: used[0]])
