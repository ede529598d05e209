"""A sampling loop over the graphs of a captured pipeline, with the scheduler of diffusers: what a bundle computes, without a bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from tokenizers import Tokenizer

from dexport.exporter.text import tokenizer_json
from dexport.passes.graph import run
from tests.exporter.pipelines.checks import Captured, run_split

PROMPTS = (
    "The cat",
    "  A  RED   Cat,\tthe\n  cat ",
    "red &amp; blue &lt;b&gt; it's 100%",
    "naïve 猫 \U0001f408\u200d\u2b1b e\u0301",
    "",
    "the red cat " * 200,
)


def token_ids(case: Captured, prompt: str) -> dict[str, list[int]]:
    """Buffer of ids -> the ids of a prompt."""
    directory = case.pipeline.directory
    return {text.ids: Tokenizer.from_str(tokenizer_json(directory, text)).encode(prompt).ids for text in case.pipeline.texts}


def check_text(case: Captured) -> None:
    """Token ids equal those of the pipeline's own tokenizers, called as the pipeline calls them."""
    for prompt in PROMPTS:
        got = token_ids(case, prompt)
        for text in case.pipeline.texts:
            tokenizer = getattr(case.original, text.folder)
            wanted = tokenizer(prompt, padding="max_length", max_length=text.length, truncation=True).input_ids
            assert got[text.ids] == wanted, (text.name, prompt)


def sample(
    case: Captured,
    *,
    steps: int,
    guidance: float,
    seed: int,
    prompt: str | None = None,
    negative: str | None = None,
    label: int | None = None,
) -> torch.Tensor:
    """One picture [1, H, W, 3] uint8."""
    pipeline, scheduler = case.pipeline, case.original.scheduler
    guided = pipeline.guidance.kind == "classifier-free" and guidance > 1
    conditions = _conditions(case, [negative, prompt] if guided else [prompt], guidance, label)
    scheduler.set_timesteps(steps, **pipeline.schedule_arguments(pipeline.default_size, steps))
    latent = torch.randn((1, *pipeline.latent_shape(pipeline.default_size)), generator=torch.Generator().manual_seed(seed))
    latent = latent * getattr(scheduler, "init_noise_sigma", 1.0)
    timesteps = scheduler.timesteps.float()
    for step, timestep in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(latent, timestep) if hasattr(scheduler, "scale_model_input") else latent
        rows = scaled.expand(2 if guided else 1, *scaled.shape[1:])
        output = run_split(case.split, {**conditions, "latent": rows}, timesteps, step)["model_output"]
        if guided:
            output = output[:1] + guidance * (output[1:] - output[:1])
        latent = scheduler.step(output, timestep, latent, return_dict=False)[0]
    return run(case.graphs["vae_decoder"], {"latent": latent})["image"]


def _conditions(case: Captured, prompts: Sequence[str | None], guidance: float, label: int | None) -> Mapping[str, torch.Tensor]:
    values: dict[str, torch.Tensor] = {}
    rows = [token_ids(case, prompt or "") for prompt in prompts]
    for text in case.pipeline.texts:
        values[text.ids] = torch.tensor([row[text.ids] for row in rows])
        values |= run(case.graphs[text.name], values)
    for request in case.pipeline.requests:
        if request.source == "given":
            values[request.buffer] = torch.tensor([float(prompt is not None) for prompt in prompts])
        elif request.source == "class":
            assert label is not None
            values[request.buffer] = torch.tensor([int(request.negative), label][-len(prompts) :])
        else:
            values[request.buffer] = torch.full((len(prompts),), guidance)
    return values


def reference(case: Captured, *, steps: int, guidance: float, seed: int, **call: object) -> torch.Tensor:
    """The picture that diffusers makes, [1, H, W, 3] uint8."""
    generator = torch.Generator().manual_seed(seed)
    images = case.original(num_inference_steps=steps, guidance_scale=guidance, generator=generator, output_type="np", **call).images
    return (torch.from_numpy(images) * 255).round().to(torch.uint8)
