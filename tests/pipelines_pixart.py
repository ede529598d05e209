"""A tiny untrained PixArt pipeline, saved as diffusers saves them."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel
from transformers import T5Config, T5EncoderModel, T5Tokenizer

WORDS = "a an the small large red green blue yellow circle square triangle left right of at top bottom and &".split()


def tiny_t5_tokenizer() -> T5Tokenizer:
    """A unigram tokenizer over a few words, letters and the usual special tokens."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -10.0)]
    pieces += [(f"▁{word}", -2.0) for word in WORDS]
    pieces += [(letter, -6.0) for letter in "▁abcdefghijklmnopqrstuvwxyz"]
    return T5Tokenizer(vocab=pieces, extra_ids=0)


def tiny_pixart(directory: Path, *, seed: int = 0, size: int = 8, **transformer: object) -> Path:
    """Writes the pipeline into `directory`: 8x8 latents of 4 channels, two blocks, guidance and learned sigma."""
    torch.manual_seed(seed)
    config: dict[str, object] = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "cross_attention_dim": 16}
    config |= {"in_channels": 4, "out_channels": 8, "sample_size": size, "patch_size": 2, "caption_channels": 32}
    config |= {"use_additional_conditions": False}
    model = PixArtTransformer2DModel(**(config | transformer))
    tokenizer = tiny_t5_tokenizer()
    text = T5EncoderModel(T5Config(vocab_size=512, d_model=32, d_ff=37, d_kv=8, num_layers=2, num_heads=4)).eval()
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        scaling_factor=0.7,
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # diffusers starts some projections at zero, which would hide mistakes
            heard = "attn2" in name or "caption_projection" in name  # so that the prompt shows in the picture
            parameter.copy_(torch.randn_like(parameter) * (0.32 if heard and parameter.dim() > 1 else 0.08))
    pipeline = PixArtAlphaPipeline(tokenizer, text, vae.eval(), model.eval(), DPMSolverMultistepScheduler())
    pipeline.save_pretrained(directory)
    return directory
