"""Tiny untrained FLUX and Wan pipelines, saved as diffusers directories: the shapes of diffusers' own tests, random weights from a seed."""

from __future__ import annotations

import io
from pathlib import Path

import torch

_SENTENCES = (
    "a small red circle at the top left, left of a large blue square",
    'A photo of a cat: 35mm, it\'s bright & sharp! 100% "real" <b>',
    "ein großes blaues Quadrat über dem Tisch, où est le café? 0123456789",
    "the quick brown fox jumps over the lazy dog while VIDEO frames move",
)


def save_t5_tokenizer(folder: Path, length: int) -> int:
    """A SentencePiece unigram tokenizer with T5's own normalization, trained on a few sentences; returns its size."""
    import sentencepiece
    from transformers import T5Tokenizer

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_SENTENCES * 20),
        model_writer=model,
        model_type="unigram",
        vocab_size=160,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(model.getvalue())
    tokenizer = T5Tokenizer.from_pretrained(folder, extra_ids=0, model_max_length=length)
    (folder / "spiece.model").unlink()
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def save_flux(directory: Path, *, guidance_embeds: bool = True) -> Path:
    """A FluxPipeline: CLIP and T5 text encoders, two streams, 2 latent channels, factor 2."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    from tests.pipelines import save_clip_tokenizer

    torch.manual_seed(0)
    clip_size = save_clip_tokenizer(directory / "tokenizer", "<|endoftext|>")
    save_t5_tokenizer(directory / "tokenizer_2", 512)
    clip = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=clip_size,
            hidden_size=32,
            intermediate_size=37,
            num_attention_heads=4,
            num_hidden_layers=2,
            max_position_embeddings=77,
            eos_token_id=2,  # what the released checkpoint says: the pooled token is the one with the highest id
        )
    )
    t5 = T5EncoderModel(T5Config(vocab_size=512, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"))
    transformer = FluxTransformer2DModel(
        in_channels=8,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=guidance_embeds,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(4, 8),
        latent_channels=2,
        norm_num_groups=2,
        sample_size=32,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.0609,
        scaling_factor=1.5035,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=guidance_embeds)
    for model in (clip, t5, transformer, vae):
        _spread(model)
    tokenizers = (_loaded(directory / "tokenizer"), _loaded(directory / "tokenizer_2"))
    FluxPipeline(scheduler, vae, clip.eval(), tokenizers[0], t5.eval(), tokenizers[1], transformer.eval()).save_pretrained(directory)
    return directory


def save_wan(directory: Path) -> Path:
    """A WanPipeline: UMT5 text encoder, two blocks, a video VAE that doubles the frames twice."""
    from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    torch.manual_seed(0)
    save_t5_tokenizer(directory / "tokenizer", 512)
    text = UMT5EncoderModel(UMT5Config(vocab_size=512, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4))
    transformer = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=32,
        freq_dim=64,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
    )
    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 2, 2],
        num_res_blocks=0,
        temperal_downsample=[True, True],
        scale_factor_spatial=4,
        latents_mean=[-0.7, 0.1, 0.5, -0.2],
        latents_std=[2.8, 1.4, 2.3, 0.9],
    )
    for model in (text, transformer, vae):
        _spread(model)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=7.0)
    pipeline = WanPipeline(_loaded(directory / "tokenizer"), text.eval(), vae.eval(), scheduler, transformer.eval())
    pipeline.save_pretrained(directory)
    return directory


def _loaded(folder: Path) -> object:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def _spread(model: torch.nn.Module) -> None:
    """Biases and norms away from their neutral start, so that a forgotten one shows."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() < 2:
                parameter.add_(0.1 * torch.randn_like(parameter))
