"""Train the picture autoencoder: 64x64x3 to 16x16x4 and back. Resumes where it was killed.

``python train_vae.py WORK_DIR --steps 2900`` writes ``WORK_DIR/vae`` (diffusers format, float32).
"""

import argparse
import math
import time
from pathlib import Path

import checkpoint
import pictures
import torch
from diffusers import AutoencoderKL

BATCH = 16
PEAK_RATE = 3e-3
WARM_UP = 100
# The mean KL divergence per latent value; enough to make the decoder forgive small errors of the denoiser.
KL_WEIGHT = 3e-4


def new_vae() -> AutoencoderKL:
    """Return the untrained autoencoder; without attention, so that every size and every backend is easy."""
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        block_out_channels=(16, 32, 32),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine down to 2 % of the peak."""
    progress = (step - WARM_UP) / max(1, steps - WARM_UP)
    return PEAK_RATE * min((step + 1) / WARM_UP, 0.02 + 0.98 * (1 + math.cos(math.pi * max(0.0, progress))) / 2)


def step_loss(vae: AutoencoderKL, images: torch.Tensor, noise: torch.Generator) -> tuple[torch.Tensor, float]:
    """Return the loss to minimise and the mean absolute error of the pictures (range -1..1)."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        moments = vae.quant_conv(vae.encoder(images)).float()
        mean, log_variance = moments.chunk(2, dim=1)
        log_variance = log_variance.clamp(-30, 20)
        latents = mean + torch.exp(log_variance / 2) * torch.randn(mean.shape, generator=noise)
        decoded = vae.decode(latents).sample
    error = (decoded.float() - images).abs().mean()
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    return error + KL_WEIGHT * divergence, float(error.detach())


@torch.no_grad()
def standardise(vae: AutoencoderKL, images: torch.Tensor) -> None:
    """Fold mean and deviation of every latent channel into the 1x1 convolutions, so that the scaling factor is 1."""
    mean = vae.encode(images).latent_dist.mean
    shift, scale = mean.mean((0, 2, 3)), mean.std((0, 2, 3))
    channels = len(shift)
    before, after = vae.quant_conv, vae.post_quant_conv
    after.bias += after.weight[:, :, 0, 0] @ shift
    after.weight *= scale[None, :, None, None]
    before.bias[:channels] = (before.bias[:channels] - shift) / scale
    before.weight[:channels] /= scale[:, None, None, None]
    before.bias[channels:] -= 2 * scale.log()


def train(work_dir: Path, steps: int, every: int) -> None:
    """Train up to ``steps`` and write the autoencoder."""
    torch.manual_seed(0)
    vae = new_vae()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=PEAK_RATE, betas=(0.9, 0.99), weight_decay=0.0)
    state = checkpoint.load(work_dir / "vae.state")
    first = 0
    if state:
        vae.load_state_dict(state["vae"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    started, errors = time.monotonic(), []
    for step in range(first, steps):
        optimizer.param_groups[0]["lr"] = learning_rate(step, steps)
        _, images = pictures.batch(BATCH, f"vae {step}")
        loss, error = step_loss(vae, images, torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        errors.append(error)
        if (step + 1) % every == 0 or step + 1 == steps:
            rate = (time.monotonic() - started) / (step + 1 - first)
            print(f"step {step + 1} error {sum(errors) / len(errors):.5f} {rate:.3f} s/step", flush=True)
            errors.clear()
            checkpoint.save(work_dir / "vae.state", {"vae": vae.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1})
    standardise(vae, pictures.batch(256, "vae statistics")[1])
    vae.save_pretrained(work_dir / "vae")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work_dir", type=Path)
    parser.add_argument("--steps", type=int, default=2900)
    parser.add_argument("--every", type=int, default=250, help="steps between checkpoints")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.work_dir.mkdir(parents=True, exist_ok=True)
    train(arguments.work_dir, arguments.steps, arguments.every)
