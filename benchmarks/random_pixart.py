"""Writes an untrained PixArt pipeline of a chosen shape, for benchmarks of time and memory.

Neither depends on what the weights are, so the denoiser's are pieces of one strip of noise: bundles and models made of them pack to a
few MB (xz with a large dictionary), and so can be carried to a machine without a network. Unpacked, they are as large as any.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel
from transformers import T5Config, T5EncoderModel, T5Tokenizer


def random_pixart(directory: Path, *, layers: int, heads: int, head_dim: int, caption: int, sample_size: int, seed: int) -> Path:
    """A PixArt pipeline with a small text encoder and a small VAE (factor 2) around a denoiser of the given shape."""
    torch.manual_seed(seed)
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -10.0), *((letter, -2.0) for letter in "▁abcdefghijklmnopqrstuvwxyz")]
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=0)
    model = PixArtTransformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=head_dim,
        in_channels=4,
        out_channels=8,
        num_layers=layers,
        cross_attention_dim=heads * head_dim,
        caption_channels=caption,
        sample_size=sample_size,
        patch_size=2,
        use_additional_conditions=False,
    )
    with torch.no_grad():
        _repeat_noise(model)
        for table in (p for n, p in model.named_parameters() if n.endswith("scale_shift_table")):
            table.normal_(0, 0.1)
    text = T5EncoderModel(T5Config(vocab_size=len(tokenizer), d_model=caption, d_ff=64, d_kv=16, num_layers=1, num_heads=2))
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        scaling_factor=0.7,
    )
    pipeline = PixArtAlphaPipeline(tokenizer, text.eval(), vae.eval(), model.eval(), DPMSolverMultistepScheduler())
    pipeline.save_pretrained(directory)
    return directory


def _repeat_noise(model: torch.nn.Module) -> None:
    """Fills every weight matrix from one strip of numbers, in PyTorch's initial range: row i of matrix k is the strip from
    k + i % 61 on, times a factor that belongs to i % 61. So no two matrices are equal, and every row recurs 61 rows below.

    Every 64th number of the strip is the largest: integer codes repeat as the numbers do. They repeat in balanced weights too, where
    every input channel has a factor. Rows need factors because OpenVINO computes with one scale where those of all channels are equal.
    """
    weights = [p.flatten(1) for n, p in model.named_parameters() if n.endswith("weight") and p.dim() > 1]
    factors = torch.linspace(0.8, 1.2, 61)
    strip = torch.rand(len(weights) + len(factors) + max(w.shape[1] for w in weights)) * 2 - 1
    strip[::64] = 1
    for k, weight in enumerate(weights):
        rows = strip[k:].as_strided((len(factors), weight.shape[1]), (1, 1)) * factors[:, None]
        weight.copy_(rows[torch.arange(len(weight)) % len(rows)] * weight.shape[1] ** -0.5)
