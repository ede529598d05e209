"""Score a diffusers pipeline on prompt files: ``python evaluate.py pipeline prompts/heldout-one.txt``.

Picture i of a prompt file always starts from the noise of seed i, whatever the batch.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import detector
import grammar
import numpy as np

STEPS = 20
GUIDANCE = 4.0
RESAMPLES = 10_000


def generate(
    pipeline: Any, prompts: list[str], steps: int = STEPS, guidance: float = GUIDANCE, batch: int = 32, seed: int = 0
) -> np.ndarray:
    """Return one picture per prompt, uint8 [n, 64, 64, 3]; prompt i starts from the noise of seed ``seed + i``."""
    import torch

    pictures = []
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        result = pipeline(
            prompt=part,
            num_inference_steps=steps,
            guidance_scale=guidance,
            use_resolution_binning=False,
            clean_caption=False,
            max_sequence_length=grammar.MOST_TOKENS,
            generator=[torch.Generator().manual_seed(seed + start + i) for i in range(len(part))],
            output_type="np",
        )
        pictures.append((result.images * 255).round().astype(np.uint8))
    return np.concatenate(pictures)


def report(prompts: list[str], pictures: Iterable[np.ndarray]) -> dict[str, Any]:
    """Score pictures from anywhere: the mean with its 95 % bootstrap interval, the rate per attribute and every single score."""
    right: Counter[str] = Counter()
    named: Counter[str] = Counter()
    scores = []
    for prompt, picture in zip(prompts, pictures, strict=True):
        attributes = detector.attributes(grammar.parse(prompt), detector.detect(picture))
        scores.append(sum(attributes.values()) / len(attributes))
        right.update(name for name, value in attributes.items() if value)
        named.update(attributes.keys())
    rng = np.random.default_rng(0)
    means = np.array(scores)[rng.integers(len(scores), size=(RESAMPLES, len(scores)))].mean(axis=1)
    return {
        "pictures": len(scores),
        "score": float(np.mean(scores)),
        "interval_95": [float(bound) for bound in np.percentile(means, (2.5, 97.5))],
        "all_right": float(np.mean([score == 1 for score in scores])),
        "attributes": {name: right[name] / named[name] for name in named},
        "scores": scores,
    }


def sheet(pictures: np.ndarray, columns: int) -> np.ndarray:
    """Lay pictures out in rows of ``columns``; what does not fill a row is left out."""
    rows = len(pictures) // columns
    _, height, width, channels = pictures.shape
    grid = pictures[: rows * columns].reshape(rows, columns, height, width, channels)
    return grid.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, channels)


def main() -> None:
    """Parse the command line, generate, score, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pipeline", type=Path)
    parser.add_argument("prompts", type=Path, nargs="+", help="files with one prompt per line")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--limit", type=int, help="use only the first prompts of every file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the reports here, by prompt file")
    parser.add_argument("--sheet", type=Path, help="write the first 36 pictures of every file as one PNG")
    arguments = parser.parse_args()

    import torch
    from diffusers import DiffusionPipeline
    from PIL import Image

    torch.set_num_threads(arguments.threads)
    pipeline = DiffusionPipeline.from_pretrained(arguments.pipeline)
    pipeline.set_progress_bar_config(disable=True)
    reports, shown = {}, []
    for path in arguments.prompts:
        prompts = path.read_text().splitlines()[: arguments.limit]
        pictures = generate(pipeline, prompts, arguments.steps, arguments.guidance, arguments.batch)
        result = reports[path.name] = report(prompts, pictures)
        shown.append(pictures[:36])
        low, high = result["interval_95"]
        print(
            f"{path.name}: {result['score']:.4f} [{low:.4f}, {high:.4f}] over {len(prompts)} pictures, all right {result['all_right']:.4f}"
        )
        print("  " + ", ".join(f"{name} {rate:.3f}" for name, rate in result["attributes"].items()), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(reports, indent=1) + "\n")
    if arguments.sheet:
        Image.fromarray(sheet(np.concatenate(shown), 12)).quantize(64).save(arguments.sheet, optimize=True)


if __name__ == "__main__":
    main()
