"""How much of a denoiser leaves the loop? Captured from configurations alone, no weights: DiT-XL/2, FLUX.1-dev and Wan2.1-1.3B.

Counts elements of matrices and kernels, and the bytes that the loop reads instead: step values and prompt values of one row in bf16.
Exits with 1 when a share is above its mark. About two minutes and 3 GB on two cores.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch

from dexport.exporter.capture import capture
from dexport.exporter.hollow import hollow_model
from dexport.exporter.pipelines import open_directory
from dexport.passes.graph import Graph, Kind, Weight
from dexport.passes.hoist import Hoisted, hoist
from dexport.passes.repair import repair

_CLIP = {"model_type": "clip_text_model", "max_position_embeddings": 77}
_IMAGE_VAE = {"block_out_channels": [128, 256, 512, 512], "latent_channels": 16, "scaling_factor": 0.3611, "shift_factor": 0.1159}
_WAN_VAE = {"z_dim": 16, "base_dim": 96, "scale_factor_spatial": 8, "scale_factor_temporal": 4}
_FLUX = {"in_channels": 64, "joint_attention_dim": 4096, "pooled_projection_dim": 768, "guidance_embeds": True}
_WAN = {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960, "num_layers": 30, "text_dim": 4096, "in_channels": 16}
_DIT = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 28,
    "sample_size": 32,
    "patch_size": 2,
    "num_embeds_ada_norm": 1000,
    "norm_type": "ada_norm_zero",
    "norm_elementwise_affine": False,
    "attention_bias": True,
    "activation_fn": "gelu-approximate",
}


@dataclass(frozen=True)
class Shape:
    """A published model: its pipeline class, configurations by folder, size in pixels, and the share that may stay in the loop."""

    pipeline: str
    configs: Mapping[str, Mapping[str, Any]]
    size: tuple[int, int]
    mark: float


SHAPES = {
    "DiT-XL/2": Shape("DiTPipeline", {"transformer": _DIT, "vae": {**_IMAGE_VAE, "latent_channels": 4}}, (256, 256), 0.595),
    "FLUX.1-dev": Shape(
        "FluxPipeline",
        {"transformer": _FLUX, "vae": _IMAGE_VAE, "text_encoder": _CLIP, "text_encoder_2": {"model_type": "t5", "d_model": 4096}},
        (1024, 1024),
        0.725,
    ),
    "Wan2.1-1.3B": Shape(
        "WanPipeline",
        {
            "transformer": {**_WAN, "patch_size": [1, 2, 2]},
            "vae": {**_WAN_VAE, "latents_mean": [0.0] * 16, "latents_std": [1.0] * 16},
            "text_encoder": {"model_type": "umt5", "d_model": 4096},
        },
        (480, 832),
        0.885,
    ),
}


@dataclass(frozen=True)
class Row:
    """What came out for one shape. Bytes are of one picture's row, in bf16; seconds and memory are of this process so far."""

    model: str
    parameters: int
    loop_parameters: int
    share: float
    mark: float
    step_values: int
    step_bytes: int
    prompt_values: int
    prompt_bytes: int
    kept: int
    seconds: float
    peak_bytes: int


def measured(name: str, shape: Shape) -> Row:
    """Captures, repairs and hoists a denoiser."""
    start = time.monotonic()
    split = _split(shape)
    report = split.report
    stepwise = [moved for moved in report.moved if Kind.STEP in moved.kinds]
    promptwise = [moved for moved in report.moved if Kind.STEP not in moved.kinds]
    return Row(
        model=name,
        parameters=report.parameters,
        loop_parameters=report.loop_parameters,
        share=report.loop_parameters / report.parameters,
        mark=shape.mark,
        step_values=len(stepwise),
        step_bytes=sum(2 * _row_elements(moved.shape) for moved in stepwise),
        prompt_values=len(promptwise),
        prompt_bytes=sum(2 * _row_elements(moved.shape) for moved in promptwise),
        kept=len(report.kept),
        seconds=time.monotonic() - start,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


def _split(shape: Shape) -> Hoisted:
    dtype = torch.bfloat16
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        for part, config in shape.configs.items():
            (directory / part).mkdir()
            (directory / part / "config.json").write_text(json.dumps(config))
        (directory / "model_index.json").write_text(json.dumps({"_class_name": shape.pipeline}))
        pipeline = open_directory(directory)
        denoiser = next(c for c in pipeline.components(shape.size, dtype) if c.name == "denoiser")
        model = hollow_model(denoiser.construct, dtype)
        graph: Graph = capture(denoiser.name, denoiser.wrap(model), denoiser.inputs, denoiser.outputs, _without_values)
    return hoist(repair(graph))


def _without_values(path: str, tensor: torch.Tensor) -> Weight:
    return Weight(tuple(tensor.shape), tensor.dtype, lambda: tensor, path)


def _row_elements(shape: tuple[int | str, ...]) -> int:
    total = 1
    for size in shape:
        total *= size if isinstance(size, int) else 1
    return total


def _provenance() -> dict[str, str]:
    root = Path(__file__).parent
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True, check=False)
    processor = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), platform.machine())
    return {
        "commit": commit.stdout.strip() or "unknown",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "processor": processor,
        "system": platform.platform(),
    }


def _lines(path: str) -> list[str]:
    file = Path(path)
    return file.read_text().splitlines() if file.exists() else []


_HEADER = "model         parameters  in loop  at most     step values      prompt values    kept  seconds  peak"


def _line(row: Row) -> str:
    counts = f"{row.model:12} {row.parameters:11}  {row.share:7.1%}  {row.mark:7.1%}"
    moved = f"{row.step_values:4} {row.step_bytes / 1e6:8.2f} MB {row.prompt_values:5} {row.prompt_bytes / 1e6:8.2f} MB"
    return f"{counts}  {moved}  {row.kept:4}  {row.seconds:7.1f}  {row.peak_bytes / 1e9:.2f} GB"


def main() -> int:
    """Prints the table and writes the JSON; 1 if a share is above its mark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", choices=[*SHAPES, []], help="default: all")
    parser.add_argument("--json", type=Path, help="write rows and provenance here")
    options = parser.parse_args()
    print(_HEADER)
    rows = []
    for name in options.models or SHAPES:
        rows.append(measured(name, SHAPES[name]))
        print(_line(rows[-1]), flush=True)
    provenance = _provenance()
    print(", ".join(f"{key} {value}" for key, value in provenance.items()))
    if options.json is not None:
        options.json.write_text(json.dumps({"provenance": provenance, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    return 0 if all(row.share <= row.mark for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
