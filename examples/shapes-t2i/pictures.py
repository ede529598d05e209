"""Training pictures with their prompts; the same seed gives the same pictures."""

import random

import grammar
import numpy as np
import render
import torch

ONE_OBJECT_SHARE = 0.6
# A tenth of the one-object prompts leaves the place out, so that "a red circle" means something too.
NO_PLACE_SHARE = 0.1


def sample(rng: random.Random) -> tuple[str, np.ndarray]:
    """Draw a training prompt and a picture for it, uint8, [64, 64, 3]."""
    if rng.random() >= ONE_OBJECT_SHARE:
        prompt = grammar.random_pair(rng, held_out=False)
        return prompt.text(), render.draw(render.arrange(prompt, rng)[0])
    prompt = grammar.random_single(rng)
    picture = render.draw(render.arrange(prompt, rng)[0])
    if rng.random() < NO_PLACE_SHARE:
        prompt = grammar.Prompt(prompt.things)
    return prompt.text(), picture


def batch(count: int, seed: str) -> tuple[list[str], torch.Tensor]:
    """Draw ``count`` prompts and pictures, float32 in -1..1, [count, 3, 64, 64]."""
    rng = random.Random(seed)
    prompts, pictures = zip(*(sample(rng) for _ in range(count)), strict=True)
    return list(prompts), torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
