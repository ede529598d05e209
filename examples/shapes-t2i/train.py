"""Train the denoiser and the text encoder together on latents of pictures. Resumes where it was killed.

``python train.py WORK_DIR --steps 3300`` needs ``WORK_DIR/vae`` from ``train_vae.py``; ``WORK_DIR/pipeline`` is the result.
"""

import argparse
import copy
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import checkpoint
import grammar
import lesson
import model
import pictures
import torch
from diffusers import AutoencoderKL
from torch import nn

PICTURES = 48_000
BATCH = 64
PEAK_RATE = 1.5e-3
WARM_UP = 200
EMA_DECAY = 0.998
# One object is learnt in 2000 steps, two take longer: from then on most of the batch shows two (the pictures hold 40 %).
PAIRS_FROM, PAIRS_SHARE = 2000, 0.8
# Before this step the text encoder gets its lesson, and averaging starts anew.
LESSON_AT = 2500
# Share of prompts replaced by the empty one, for classifier-free guidance.
EMPTY_SHARE = 0.1


class Denoiser(nn.Module):
    """Text encoder and transformer as one trainable module."""

    def __init__(self) -> None:
        super().__init__()
        self.text_encoder = model.new_text_encoder(len(model.new_tokenizer()))
        self.transformer = model.new_transformer()

    def forward(self, latents: torch.Tensor, steps: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Predict v for latents [n, 4, 16, 16], training steps [n] and token ids [n, words]."""
        mask = (tokens != 0).float()
        text = self.text_encoder(input_ids=tokens, attention_mask=mask).last_hidden_state
        conditions = {"resolution": None, "aspect_ratio": None}
        return self.transformer(
            latents, encoder_hidden_states=text, encoder_attention_mask=mask, timestep=steps, added_cond_kwargs=conditions
        ).sample


def tokenise(prompts: list[str]) -> torch.Tensor:
    """Return token ids, [n, MOST_TOKENS]."""
    return model.new_tokenizer()(prompts, padding="max_length", max_length=grammar.MOST_TOKENS, return_tensors="pt").input_ids


@torch.no_grad()
def cached_latents(work_dir: Path, count: int) -> dict[str, torch.Tensor]:
    """Draw and encode the training pictures once.

    Returns:
        ``latents`` float16 [count, 4, 16, 16], ``tokens`` [count, MOST_TOKENS], and the row numbers of ``pairs`` and ``singles``.
    """
    path = work_dir / f"latents-{count}.pt"
    found = checkpoint.load(path)
    if found:
        return found
    vae = AutoencoderKL.from_pretrained(work_dir / "vae").eval()
    latents, prompts = [], []
    for start in range(0, count, 100):
        texts, images = pictures.batch(100, f"latents {start}")
        latents.append(vae.encode(images).latent_dist.mean.half())
        prompts += texts
    two = torch.tensor([grammar.parse(prompt).relation is not None for prompt in prompts])
    cache = {
        "latents": torch.cat(latents),
        "tokens": tokenise(prompts),
        "pairs": two.nonzero().flatten(),
        "singles": (~two).nonzero().flatten(),
    }
    checkpoint.save(path, cache)
    return cache


def draw_batch(cache: dict[str, torch.Tensor], timesteps: int, step: int) -> tuple[torch.Tensor, ...]:
    """Return the clean latents, noise, training steps and tokens that belong to ``step``."""
    draw = torch.Generator().manual_seed(step)
    rows = torch.randint(len(cache["latents"]), (BATCH,), generator=draw)
    if step >= PAIRS_FROM:
        pair = torch.rand(BATCH, generator=draw) < PAIRS_SHARE
        pairs, singles = cache["pairs"], cache["singles"]
        rows = torch.where(pair, pairs[rows % len(pairs)], singles[rows % len(singles)])
    clean, tokens = cache["latents"][rows].float(), cache["tokens"][rows]
    tokens[torch.rand(BATCH, generator=draw) < EMPTY_SHARE] = tokenise([""])
    # One timestep from each of BATCH equal intervals: less variance than independent draws.
    times = ((torch.arange(BATCH) + torch.rand(BATCH, generator=draw)) * (timesteps / BATCH)).long()
    return clean, torch.randn(clean.shape, generator=draw), times, tokens


def backward(denoiser: nn.Module, alphas: torch.Tensor, batch: tuple[torch.Tensor, ...]) -> float:
    """Leave the gradients of the v-prediction's mean squared error (Salimans and Ho 2022, appendix D) and return the error."""
    clean, noise, times, tokens = batch
    signal, sigma = alphas[times].sqrt()[:, None, None, None], (1 - alphas[times]).sqrt()[:, None, None, None]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        predicted = denoiser(signal * clean + sigma * noise, times, tokens)
    loss = (predicted.float() - (signal * noise - sigma * clean)).square().mean()
    loss.backward()
    return float(loss.detach())


def export(work_dir: Path, averaged: Denoiser) -> None:
    """Write the pipeline with averaged weights in float16."""
    vae = AutoencoderKL.from_pretrained(work_dir / "vae")
    parts = copy.deepcopy(averaged)
    folder = work_dir / "pipeline"
    model.assemble(vae, parts.text_encoder, parts.transformer).to(torch.float16).save_pretrained(folder)
    # transformers loads in the type that its configuration names, diffusers in float32: without this a plain from_pretrained
    # would mix the two.
    _edit(folder / "text_encoder" / "config.json", dtype="float32")
    _edit(folder / "vae" / "config.json", _name_or_path="vae")


def _edit(config: Path, **changes: str) -> None:
    config.write_text(json.dumps(json.loads(config.read_text()) | changes, indent=2, sort_keys=True) + "\n")


def train(work_dir: Path, steps: int, every: int, workers: int) -> None:
    """Train up to ``steps``; every ``every`` steps write a checkpoint and the pipeline."""
    torch.manual_seed(0)
    denoiser = Denoiser()
    averaged = copy.deepcopy(denoiser).requires_grad_(False)
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=PEAK_RATE, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    state = checkpoint.load(work_dir / "denoiser.state")
    first = 0
    if state:
        denoiser.load_state_dict(state["denoiser"])
        averaged.load_state_dict(state["averaged"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    cache = cached_latents(work_dir, PICTURES)
    alphas = model.new_scheduler().alphas_cumprod
    # One replica and one thread per core meet once per step; threads inside every operation meet hundreds of times, and on a
    # machine that others use too each meeting waits for the core that is busy elsewhere (measured: half the speed).
    torch.set_num_threads(1)
    replicas = [denoiser, *(copy.deepcopy(denoiser) for _ in range(workers - 1))]
    pool = ThreadPoolExecutor(workers)
    started, losses = time.monotonic(), []
    for step in range(first, steps):
        if step == LESSON_AT:
            lesson.teach(denoiser.text_encoder)
            for replica in (averaged, *replicas[1:]):
                replica.load_state_dict(denoiser.state_dict())
        optimizer.param_groups[0]["lr"] = checkpoint.learning_rate(step, steps, PEAK_RATE, WARM_UP)
        batch = draw_batch(cache, len(alphas), step)
        shares = [tuple(part[worker::workers] for part in batch) for worker in range(workers)]
        losses.append(sum(pool.map(backward, replicas, [alphas] * workers, shares)) / workers)
        update(replicas, optimizer)
        averaging = step - LESSON_AT if step >= LESSON_AT else step
        decay = min(EMA_DECAY, (averaging + 1) / (averaging + 10))
        torch._foreach_lerp_(list(averaged.parameters()), list(denoiser.parameters()), 1 - decay)
        if (step + 1) % 50 == 0:
            rate = (time.monotonic() - started) / (step + 1 - first)
            print(f"step {step + 1} loss {sum(losses) / len(losses):.5f} {rate:.3f} s/step", flush=True)
            losses.clear()
        if (step + 1) % every == 0 or step + 1 == steps:
            weights = {"denoiser": denoiser.state_dict(), "averaged": averaged.state_dict()}
            checkpoint.save(work_dir / "denoiser.state", {**weights, "optimizer": optimizer.state_dict(), "step": step + 1})
            export(work_dir, averaged)


@torch.no_grad()
def update(replicas: list[Denoiser], optimizer: torch.optim.Optimizer) -> None:
    """Step the first replica with the mean of all gradients and copy it to the others."""
    leader = list(replicas[0].parameters())
    for replica in replicas[1:]:
        torch._foreach_add_([parameter.grad for parameter in leader], [parameter.grad for parameter in replica.parameters()])
        replica.zero_grad()
    torch._foreach_div_([parameter.grad for parameter in leader], len(replicas))
    torch.nn.utils.clip_grad_norm_(leader, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    for replica in replicas[1:]:
        torch._foreach_copy_(list(replica.parameters()), leader)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work_dir", type=Path)
    parser.add_argument("--steps", type=int, default=3300)
    parser.add_argument("--every", type=int, default=500, help="steps between checkpoints")
    parser.add_argument("--workers", type=int, default=2, help="cores to use")
    arguments = parser.parse_args()
    train(arguments.work_dir, arguments.steps, arguments.every, arguments.workers)
