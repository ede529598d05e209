"""Tiny untrained pipelines, saved as diffusers saves them: the shapes of diffusers' own tests, random weights from a seed.

The CLIP tokenizer has the layout of the real one: "!" is id 0, start and end of text are the highest ids.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.pipelines_flow import save_t5_tokenizer

_CLIP_TOKENS = 77


def tiny_stable_diffusion(directory: Path, **unet: Any) -> Path:
    """A StableDiffusionPipeline without a safety checker; `unet` changes the denoiser's configuration."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")}
    sizes = {"block_out_channels": (4, 8), "layers_per_block": 1, "sample_size": 32, "cross_attention_dim": 32, "norm_num_groups": 2}
    denoiser = UNet2DConditionModel(**{**blocks, **sizes, **unet})
    vae = AutoencoderKL(**_vae_blocks(2), block_out_channels=(4, 8), latent_channels=4, norm_num_groups=2, sample_size=64)
    StableDiffusionPipeline(
        vae=_prepared(vae),
        text_encoder=_clip(directory / "tokenizer", projected=False, width=32),
        tokenizer=_loaded(directory / "tokenizer"),
        unet=_prepared(denoiser),
        scheduler=DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(directory)
    return directory


def tiny_sdxl(directory: Path, **unet: Any) -> Path:
    """A StableDiffusionXLPipeline; `unet` changes the denoiser's configuration."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")}
    sizes = {"block_out_channels": (4, 8), "layers_per_block": 2, "sample_size": 32, "cross_attention_dim": 64, "norm_num_groups": 2}
    heads = {"attention_head_dim": (2, 4), "use_linear_projection": True, "transformer_layers_per_block": (1, 2)}
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 6 * 8 + 32}
    denoiser = UNet2DConditionModel(**{**blocks, **sizes, **heads, **added, **unet})
    vae = AutoencoderKL(**_vae_blocks(2), block_out_channels=(4, 8), latent_channels=4, norm_num_groups=2, sample_size=64)
    StableDiffusionXLPipeline(
        vae=_prepared(vae),
        text_encoder=_clip(directory / "tokenizer", projected=False, width=32),
        text_encoder_2=_clip(directory / "tokenizer_2", projected=True, width=32, pad="!"),
        tokenizer=_loaded(directory / "tokenizer"),
        tokenizer_2=_loaded(directory / "tokenizer_2"),
        unet=_prepared(denoiser),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading"
        ),
        add_watermarker=False,
    ).save_pretrained(directory)
    return directory


def tiny_dit(directory: Path) -> Path:
    """A DiTPipeline with learned sigma."""
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        sample_size=16,
        num_layers=2,
        patch_size=4,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
    )
    vae = AutoencoderKL(**_vae_blocks(2), block_out_channels=(4, 8), latent_channels=4, norm_num_groups=2, sample_size=32)
    DiTPipeline(_prepared(transformer), _prepared(vae), DDIMScheduler(clip_sample=False)).save_pretrained(directory)
    return directory


def tiny_sd3(directory: Path, *, with_t5: bool = True, scheduler: dict[str, Any] | None = None, **transformer: Any) -> Path:
    """A StableDiffusion3Pipeline; `scheduler` and `transformer` change the configurations."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    sizes = {"sample_size": 16, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 2, "pos_embed_max_size": 24}
    widths = {"attention_head_dim": 8, "num_attention_heads": 4, "caption_projection_dim": 32, "joint_attention_dim": 48}
    denoiser = SD3Transformer2DModel(**{**sizes, **widths, "pooled_projection_dim": 32, **transformer})
    flags = {"use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.0609, "scaling_factor": 1.5035}
    vae = AutoencoderKL(**_vae_blocks(2), block_out_channels=(4, 8), latent_channels=4, norm_num_groups=2, sample_size=32, **flags)
    t5 = None
    if with_t5:
        tokens = save_t5_tokenizer(directory / "tokenizer_3", 512)
        t5 = _prepared(T5EncoderModel(T5Config(vocab_size=tokens, d_model=48, d_kv=8, d_ff=37, num_layers=2, num_heads=4)))
    StableDiffusion3Pipeline(
        transformer=_prepared(denoiser),
        scheduler=FlowMatchEulerDiscreteScheduler(**(scheduler or {"shift": 3.0})),
        vae=_prepared(vae),
        text_encoder=_clip(directory / "tokenizer", projected=True, width=16),
        tokenizer=_loaded(directory / "tokenizer"),
        text_encoder_2=_clip(directory / "tokenizer_2", projected=True, width=16, pad="!"),
        tokenizer_2=_loaded(directory / "tokenizer_2"),
        text_encoder_3=t5,
        tokenizer_3=_loaded(directory / "tokenizer_3") if with_t5 else None,
    ).save_pretrained(directory)
    return directory


def edit_config(file: Path, **changes: Any) -> None:
    """Changes entries of a JSON configuration."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def save_clip_tokenizer(folder: Path, pad: str) -> int:
    """CLIP's byte-level BPE with a few merges; returns its size."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    merges = [("r", "e"), ("re", "d</w>"), ("c", "a"), ("ca", "t</w>"), ("t", "h"), ("th", "e</w>"), ("a", "m"), ("am", "p</w>")]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges)]
    vocabulary = {word: index for index, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=pad, model_max_length=_CLIP_TOKENS)
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def _clip(tokenizer: Path, *, projected: bool, width: int, pad: str = "<|endoftext|>") -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokens = save_clip_tokenizer(tokenizer, pad)
    config = CLIPTextConfig(
        vocab_size=tokens,
        hidden_size=width,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=3,
        max_position_embeddings=_CLIP_TOKENS,
        projection_dim=width,
        hidden_act="gelu" if projected else "quick_gelu",
        eos_token_id=2,  # what the released checkpoints say: the pooled token is the one with the highest id
    )
    return _prepared(CLIPTextModelWithProjection(config) if projected else CLIPTextModel(config))


def _vae_blocks(levels: int) -> dict[str, Any]:
    return {"down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels}


def _loaded(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def _prepared(model: nn.Module) -> nn.Module:
    """In evaluation mode, biases and norms away from their neutral start, so that a forgotten one shows."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() < 2:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()
