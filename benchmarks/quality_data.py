"""Pictures of the reference pipeline by any denoiser: what the quality tables of peers and recipes are made from.

Everything around the denoiser is fixed: prompts, noise (seed i for prompt i), scheduler, 20 steps and guidance 4.0 (as in the example's
evaluate.py), 120 prompt tokens, 64x64 pictures. So two denoisers differ in their pictures by what they compute and by nothing else.

Needs only torch, diffusers and transformers, and runs on a processor or a GPU; all arithmetic is float32, TF32 is off.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

EXAMPLE = Path(__file__).parents[1] / "examples" / "shapes-t2i"
sys.path.insert(0, str(EXAMPLE))  # its detector and grammar are modules beside each other
STEPS, GUIDANCE, TOKENS = 20, 4.0, 120
CALIBRATION_PROMPTS = 32

Denoiser = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""latent [2B, 4, 16, 16], prompt [2B, 120, 96], mask [2B, 120], timestep [2B] -> model output [2B, 4, 16, 16]; the first B rows are
unconditional. All float32 on the device of the Example."""


@dataclass(frozen=True)
class Example:
    """The pipeline in float32 on a device."""

    pipeline: Any
    device: torch.device

    @property
    def transformer(self) -> torch.nn.Module:
        """The denoiser, PixArtTransformer2DModel."""
        return self.pipeline.transformer


@dataclass(frozen=True)
class Embedded:
    """Encoded prompts: embeds [n, 120, 96], mask [n, 120] of 0 and 1, and one empty prompt's."""

    text: tuple[str, ...]
    embeds: torch.Tensor
    mask: torch.Tensor
    empty: torch.Tensor
    empty_mask: torch.Tensor


@dataclass(frozen=True)
class Quantized:
    """A peer's denoiser, ready to sample with.

    Attributes:
        weights, activations: formats, such as "int4 block 128" and "int8".
        bits: average bits per weight of the loop's linears, everything counted that a quantized linear stores in place of its weight:
            codes, scales and zero points at 16 bits each, vectors that multiply its input at 16 bits an element.
        batch: how many pictures fit one call; 0 if any number does.
    """

    name: str
    weights: str
    activations: str
    bits: float
    denoiser: Denoiser
    batch: int = 0


@dataclass(frozen=True)
class Samples:
    """What sampling gave: pictures uint8 [n, 64, 64, 3], and the latents after every step, float32 [steps, n, 4, 16, 16]."""

    pictures: np.ndarray
    latents: torch.Tensor


def open_example(device: str) -> Example:
    """Reads the reference pipeline."""
    from diffusers import DiffusionPipeline

    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    pipeline = DiffusionPipeline.from_pretrained(EXAMPLE / "pipeline", dtype=torch.float32).to(device)
    pipeline.transformer.eval().requires_grad_(False)
    return Example(pipeline, torch.device(device))


def prompts_of(name: str, count: int) -> list[str]:
    """The first prompts of a file of the example, such as "heldout-one"."""
    return (EXAMPLE / "prompts" / f"{name}.txt").read_text(encoding="utf-8").splitlines()[:count]


@torch.no_grad()
def embedded(example: Example, prompts: list[str]) -> Embedded:
    """Encodes prompts, padded to 120 tokens as dexport's PixArt family does."""
    embeds, mask, empty, empty_mask = example.pipeline.encode_prompt(
        prompts, clean_caption=False, max_sequence_length=TOKENS, device=example.device
    )
    return Embedded(tuple(prompts), embeds, mask.float(), empty[:1], empty_mask[:1].float())


def torch_denoiser(model: torch.nn.Module) -> Denoiser:
    """A PixArtTransformer2DModel, quantized in place or not, as a Denoiser."""

    def call(latent: torch.Tensor, prompt: torch.Tensor, mask: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        extra = {"resolution": None, "aspect_ratio": None}
        output = model(latent, prompt, timestep, added_cond_kwargs=extra, encoder_attention_mask=mask, return_dict=False)[0]
        return output[:, :4]

    return call


def denoiser_copy(example: Example) -> torch.nn.Module:
    """A copy of the float32 denoiser that a peer may quantize in place."""
    return copy.deepcopy(example.transformer)


@torch.no_grad()
def sample(example: Example, denoiser: Denoiser, prompts: Embedded, batch: int) -> Samples:
    """One picture per prompt, `batch` at a time; picture i starts from the noise of seed i whatever the batch."""
    pictures, latents = [], []
    for start in range(0, len(prompts.text), batch):
        steps = list(denoised(example, denoiser, prompts, start, min(start + batch, len(prompts.text))))
        pictures.append(decoded(example, steps[-1]))
        latents.append(torch.stack(steps).cpu())
    return Samples(np.concatenate(pictures), torch.cat(latents, dim=1))


@torch.no_grad()
def denoised(example: Example, denoiser: Denoiser, prompts: Embedded, start: int, stop: int) -> Iterator[torch.Tensor]:
    """The latents [B, 4, 16, 16] of prompts start..stop after every step: the loop of diffusers' PixArtAlphaPipeline."""
    scheduler = copy.deepcopy(example.pipeline.scheduler)
    scheduler.set_timesteps(STEPS)
    count = stop - start
    text = torch.cat([prompts.empty.expand(count, -1, -1), prompts.embeds[start:stop]])
    mask = torch.cat([prompts.empty_mask.expand(count, -1), prompts.mask[start:stop]])
    noise = [torch.randn((1, 4, 16, 16), generator=torch.Generator("cpu").manual_seed(i)) for i in range(start, stop)]
    latent = torch.cat(noise).to(example.device) * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        pair = scheduler.scale_model_input(torch.cat([latent, latent]), timestep)
        output = denoiser(pair, text, mask, timestep.to(example.device, torch.float32).expand(2 * count))
        unconditional, conditional = output.chunk(2)
        guided = unconditional + GUIDANCE * (conditional - unconditional)
        latent = scheduler.step(guided, timestep, latent, return_dict=False)[0]
        yield latent


def decoded(example: Example, latent: torch.Tensor) -> np.ndarray:
    """Latents [B, 4, 16, 16] -> pictures, uint8 [B, 64, 64, 3]."""
    vae = example.pipeline.vae
    image = vae.decode(latent / vae.config.scaling_factor, return_dict=False)[0]
    return ((image / 2 + 0.5).clamp(0, 1) * 255).round().permute(0, 2, 3, 1).to(torch.uint8).cpu().numpy()


def calibrate(example: Example, denoiser: Denoiser, batch: int, prompts: int = CALIBRATION_PROMPTS) -> None:
    """Runs the whole sampling loop on the calibration prompts through `denoiser`, which observes."""
    text = embedded(example, prompts_of("calibration", prompts))
    for start in range(0, prompts, batch):
        for _ in denoised(example, denoiser, text, start, min(start + batch, prompts)):
            pass


SIDE_BITS = 16
"""Bits of a scale, a zero point, or an element of a vector that multiplies the input."""


def average_bits(linears: dict[str, torch.nn.Linear], code_bits: int, extra: Callable[[str, torch.nn.Linear], int]) -> float:
    """Bits per weight over linears whose codes have `code_bits` and which store `extra(name, linear)` numbers of 16 bits besides."""
    weights = sum(linear.weight.numel() for linear in linears.values())
    return code_bits + SIDE_BITS * sum(extra(name, linear) for name, linear in linears.items()) / weights


def loop_linears(model: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    """Site name -> linear, for the linears of the blocks that run in the sampling loop.

    The keys and values of cross-attention depend on the prompt alone: dexport computes them once per picture, so they are quantized by
    nobody and counted by nobody.
    """
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and name.startswith("transformer_blocks.")
        and not name.endswith(("attn2.to_k", "attn2.to_v"))
    }
