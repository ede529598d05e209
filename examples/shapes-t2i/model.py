"""The parts of the pipeline: a small PixArt with its own T5 and tokenizer."""

import grammar
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel
from transformers import T5Config, T5EncoderModel, T5Tokenizer

TEXT_WIDTH = 96
HEADS, HEAD_WIDTH, LAYERS = 6, 32, 6


def new_tokenizer() -> T5Tokenizer:
    """Return a tokenizer that knows the words of the grammar; everything else becomes ``<unk>``."""
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((f"▁{word}", -1.0) for word in grammar.words())]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=grammar.MOST_TOKENS * 10)


def new_text_encoder(vocabulary_size: int) -> T5EncoderModel:
    """Return the untrained text encoder; two layers suffice to bind adjectives to nouns."""
    config = T5Config(
        vocab_size=vocabulary_size,
        d_model=TEXT_WIDTH,
        d_kv=24,
        d_ff=192,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        pad_token_id=0,
        eos_token_id=1,
    )
    return T5EncoderModel(config)


def new_transformer() -> PixArtTransformer2DModel:
    """Return the untrained denoiser: 16x16 latents in patches of 2x2 make 64 tokens."""
    return PixArtTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_WIDTH,
        in_channels=4,
        out_channels=4,
        num_layers=LAYERS,
        cross_attention_dim=HEADS * HEAD_WIDTH,
        caption_channels=TEXT_WIDTH,
        sample_size=16,
        patch_size=2,
        use_additional_conditions=False,
    )


def new_scheduler() -> DPMSolverMultistepScheduler:
    """Return the sampler; its noise schedule and prediction type are those of the training."""
    scheduler = DPMSolverMultistepScheduler(
        num_train_timesteps=1000, beta_schedule="linear", beta_start=1e-4, beta_end=0.02, prediction_type="v_prediction", solver_order=2
    )
    # DPM-Solver++ has no use for it, but DDIM and DDPM made from this configuration would clip latents, which go beyond -1..1.
    scheduler.register_to_config(clip_sample=False)
    return scheduler


def assemble(vae: AutoencoderKL, text_encoder: T5EncoderModel, transformer: PixArtTransformer2DModel) -> PixArtAlphaPipeline:
    """Put the trained parts together."""
    return PixArtAlphaPipeline(
        tokenizer=new_tokenizer(), text_encoder=text_encoder, vae=vae, transformer=transformer, scheduler=new_scheduler()
    )
