"""How fast is the denoising loop on the CPU, beside what a user has today?

One PixArt denoiser (12 layers, hidden 384, 256 tokens), 20 steps with guidance, batch 1. The loop alone is timed: text encoder and VAE
decoder are left out everywhere. Peers, in the same process on the same model, in turn:

    diffusers    the pipeline's own loop in eager PyTorch
    onnxruntime  plain torch.onnx.export of the denoiser, driven by the diffusers scheduler
    openvino     the same ONNX file in OpenVINO
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch
from diffusers import DiffusionPipeline
from provenance import write_result
from random_pixart import random_pixart

from dexport.exporter.build import build
from dexport.exporter.options import BuildOptions
from dexport.runtime.pipeline import load

STEPS, SEED, GUIDANCE, PROMPT, TOKENS = 20, 0, 4.5, "a red circle", 120


class Denoiser(torch.nn.Module):
    """What a plain export captures: both halves of the guidance in one batch."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, latent: torch.Tensor, prompt: torch.Tensor, mask: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """The whole model output."""
        extra = {"resolution": None, "aspect_ratio": None}
        return self.model(latent, prompt, timestep, added_cond_kwargs=extra, encoder_attention_mask=mask, return_dict=False)[0]


def plain_export(pipeline: Any, path: Path, arguments: tuple[torch.Tensor, ...]) -> None:
    """torch.onnx.export as documented; only the Squeeze that no runtime loads is mended by reshaping the output first."""
    model = Denoiser(pipeline.transformer)
    exported = torch.onnx.export(model.eval(), arguments, dynamo=True, verbose=False)
    import onnx

    proto = exported.model_proto
    shapes = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in (*proto.graph.value_info, *proto.graph.input)}
    for node in proto.graph.node:
        if node.op_type == "Squeeze" and node.input[0] in shapes and 1 not in shapes[node.input[0]]:
            node.op_type = "Identity"
            del node.input[1:]
    onnx.save(proto, path)


def denoise(pipeline: Any, call: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> tuple[torch.Tensor, float]:
    """The loop of a diffusers pipeline around `call(latent pair, timestep pair) -> model output pair`; final latent and seconds."""
    scheduler = pipeline.scheduler
    scheduler.set_timesteps(STEPS)
    size = pipeline.transformer.config.sample_size
    latent = torch.randn((1, 4, size, size), generator=torch.Generator("cpu").manual_seed(SEED)) * scheduler.init_noise_sigma
    started = time.perf_counter()
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            output = call(torch.cat([latent] * 2), timestep.expand(2)).chunk(2, dim=1)[0]
            unconditional, conditional = output.chunk(2)
            latent = scheduler.step(unconditional + GUIDANCE * (conditional - unconditional), timestep, latent, return_dict=False)[0]
    return latent, time.perf_counter() - started


def main() -> None:
    """Measures, prints ratios, writes results/cpu_loop.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), arguments.runs)
    write_result("cpu_loop", SEED, rows, "20 steps with guidance, loop alone, fp32, medians; ratio = ours / peer")


def measure(folder: Path, runs: int) -> list[dict[str, Any]]:
    """One row per peer, then ours."""
    directory = random_pixart(folder / "model", layers=12, heads=6, head_dim=64, caption=512, sample_size=32, seed=SEED)
    pipeline = DiffusionPipeline.from_pretrained(directory)
    pipeline.set_progress_bar_config(disable=True)
    embeds, mask, negative, negative_mask = pipeline.encode_prompt(PROMPT, clean_caption=False, max_sequence_length=TOKENS)
    prompt, masks = torch.cat([negative, embeds]), torch.cat([negative_mask, mask]).float()
    example = (torch.randn(2, 4, 32, 32), prompt, masks, torch.full((2,), 500))
    onnx_file = folder / "plain.onnx"
    plain_export(pipeline, onnx_file, example)
    peers = peer_loops(pipeline, onnx_file, prompt, masks)
    bundle = build(BuildOptions(model=str(directory), target="cpu", steps=(STEPS,), golden="none"), folder / "ours.dxb")
    with load(bundle) as ours:
        latents: dict[str, torch.Tensor] = {}
        seconds: dict[str, list[float]] = {name: [] for name in (*peers, "dexport")}
        for _ in range(runs + 1):  # in turn, so that a change of the machine's speed hits all alike; the first round warms up
            for name, peer in peers.items():
                latents[name], elapsed = peer()
                seconds[name].append(elapsed)
            latents["dexport"], elapsed = our_loop(ours)
            seconds["dexport"].append(elapsed)
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    reference = latents["diffusers eager"]
    return [
        {
            "loop": name,
            "ms per step": 1000 * medians[name] / STEPS,
            "ours / this": statistics.median(a / b for a, b in zip(seconds["dexport"][1:], seconds[name][1:])),
            "latent error": float((latents[name] - reference).norm() / reference.norm()),
        }
        for name in medians
    ]


def peer_loops(
    pipeline: Any, onnx_file: Path, prompt: torch.Tensor, masks: torch.Tensor
) -> dict[str, Callable[[], tuple[torch.Tensor, float]]]:
    """name -> a function that runs the whole loop once."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(onnx_file), providers=["CPUExecutionProvider"])
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(openvino.Core().read_model(onnx_file), "CPU", hints)
    names = [i.name for i in session.get_inputs()]

    def feed(latent: torch.Tensor, timestep: torch.Tensor) -> dict[str, np.ndarray]:
        return dict(zip(names, (latent.numpy(), prompt.numpy(), masks.numpy(), timestep.numpy())))

    extra = {"resolution": None, "aspect_ratio": None}

    def eager(latent: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        model = pipeline.transformer
        return model(latent, prompt, timestep, added_cond_kwargs=extra, encoder_attention_mask=masks, return_dict=False)[0]

    return {
        "diffusers eager": lambda: denoise(pipeline, eager),
        "onnxruntime": lambda: denoise(pipeline, lambda x, t: torch.from_numpy(session.run(None, feed(x, t))[0])),
        "openvino": lambda: denoise(pipeline, lambda x, t: torch.from_numpy(compiled(feed(x, t))[0])),
    }


def our_loop(ours: Any) -> tuple[torch.Tensor, float]:
    """Runs the bundle; the loop's seconds are those between the first sight of the sample and the last step."""
    marks: list[float] = []
    last: dict[str, np.ndarray] = {}

    def on_step(pipe: object, step: int, timestep: float, values: dict[str, np.ndarray]) -> None:
        marks.append(time.perf_counter())
        last.update(values)

    output = ours(PROMPT, seed=SEED, guidance_scale=GUIDANCE, callback_on_step_end=on_step, output_type="np")
    del output
    loop = (marks[-1] - marks[0]) * STEPS / (STEPS - 1)  # the first step's begin is not seen: add one mean step
    return torch.from_numpy(last["latents"]), loop


if __name__ == "__main__":
    main()
