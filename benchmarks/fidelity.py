"""Do bundles make the pictures that diffusers makes? The reference pipeline, same prompts, seeds, scheduler, 20 steps with guidance.

PSNR of every bundle's 8-bit pictures against diffusers in fp32 (100 dB stands for identical), and the detector's scores with the paired
bootstrap interval of their difference: an interval that holds 0 means that the pictures show what the prompts ask for as often.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from provenance import write_result

from dexport.exporter.build import build
from dexport.exporter.options import BuildOptions
from dexport.runtime.pipeline import load

EXAMPLE = Path(__file__).parents[1] / "examples" / "shapes-t2i"
sys.path.insert(0, str(EXAMPLE))
import detector  # noqa: E402 - lives beside the example

STEPS, GUIDANCE, SEED, BATCH = 20, 4.5, 0, 16
VARIANTS = (("cpu", "fp32"), ("onnxruntime-cpu", "fp32"), ("cpu", "bf16"), ("cpu", "fp16"), ("onnxruntime-cpu", "fp16"))
LEAST_DB = {"fp32": 50.0, "bf16": 35.0, "fp16": 35.0}


def diffusers_pictures(prompts: list[str]) -> np.ndarray:
    """uint8 [n, H, W, 3]; picture i starts from the noise of seed i."""
    pipeline = DiffusionPipeline.from_pretrained(EXAMPLE / "pipeline", dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pictures = []
    for start in range(0, len(prompts), BATCH):
        part = prompts[start : start + BATCH]
        seeds = [torch.Generator("cpu").manual_seed(SEED + start + i) for i in range(len(part))]
        options = {"use_resolution_binning": False, "clean_caption": False, "output_type": "np"}
        images = pipeline(part, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=seeds, **options).images
        pictures.append((images * 255).round().astype(np.uint8))
    return np.concatenate(pictures)


def bundle_pictures(path: Path, prompts: list[str]) -> np.ndarray:
    """The same from a bundle."""
    pictures = []
    with load(path) as pipeline:
        for start in range(0, len(prompts), BATCH):
            part = prompts[start : start + BATCH]
            seeds = [SEED + start + i for i in range(len(part))]
            pictures.append(pipeline(part, seed=seeds, num_inference_steps=STEPS, guidance_scale=GUIDANCE, output_type="np").images)
    return np.concatenate(pictures)


def psnr(given: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Decibels per picture, at most 100."""
    error = ((given.astype(float) - expected.astype(float)) ** 2).mean(axis=(1, 2, 3))
    return np.minimum(100.0, 10 * np.log10(255**2 / np.maximum(error, 1e-12)))


def compared(name: str, pictures: np.ndarray, reference: np.ndarray, prompts: list[str], reference_scores: np.ndarray) -> dict[str, Any]:
    """One row: PSNR, scores, and the 95 % interval of the paired difference."""
    decibels = psnr(pictures, reference)
    scores = np.array([detector.score(p, picture) for p, picture in zip(prompts, pictures)])
    difference = scores - reference_scores
    draws = np.random.default_rng(SEED).integers(len(difference), size=(10_000, len(difference)))
    low, high = np.percentile(difference[draws].mean(axis=1), [2.5, 97.5])
    return {
        "pictures by": name,
        "median dB": float(np.median(decibels)),
        "least dB": float(decibels.min()),
        "score": float(scores.mean()),
        "score difference": f"[{low:+.4f}, {high:+.4f}]",
    }


def main() -> int:
    """1 if a bundle's median PSNR is below its limit or its score differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=64)
    prompts = (EXAMPLE / "prompts" / "heldout-one.txt").read_text().splitlines()[: parser.parse_args().prompts]
    reference = diffusers_pictures(prompts)
    reference_scores = np.array([detector.score(p, picture) for p, picture in zip(prompts, reference)])
    rows = [compared("diffusers, fp32", reference, reference, prompts, reference_scores)]
    good = True
    with tempfile.TemporaryDirectory() as folder:
        for target, precision in VARIANTS:
            options = BuildOptions(model=str(EXAMPLE / "pipeline"), target=target, precision=precision, steps=(STEPS,), batch=BATCH)
            path = build(options, Path(folder) / f"{target}-{precision}.dxb")
            row = compared(f"{target}, {precision}", bundle_pictures(path, prompts), reference, prompts, reference_scores)
            low, high = (float(x) for x in str(row["score difference"]).strip("[]").split(","))
            good &= row["median dB"] >= LEAST_DB[precision] and low <= 0 <= high
            rows.append(row)
    write_result("fidelity", SEED, rows, f"shapes-t2i, {len(prompts)} held-out prompts, {STEPS} steps, guidance {GUIDANCE}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
