"""How much of a denoiser leaves the loop? Captured from configurations alone, no weights: DiT-XL/2, FLUX.1-dev and Wan2.1-1.3B.

Counts elements of matrices and kernels, and the bytes that the loop reads instead: step values and prompt values of one row in bf16.
Exits with 1 when a share, to a tenth of a percent, is above its mark. Two and a half minutes of one core, 1 GB.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from provenance import write_result

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
    """What came out for one shape. Megabytes of moved values are of one row in bf16, `seconds` processor time."""

    model: str
    parameters: int
    in_loop: int
    share: float
    mark: float
    step_mb: float
    prompt_mb: float
    kept: int
    seconds: float
    peak_mb: float


def measured(name: str, shape: Shape) -> Row:
    """Captures, repairs and hoists a denoiser."""
    start = time.process_time()
    report = _split(shape).report
    return Row(
        model=name,
        parameters=report.parameters,
        in_loop=report.loop_parameters,
        share=report.loop_parameters / report.parameters,
        mark=shape.mark,
        step_mb=sum(2e-6 * _row_elements(moved.shape) for moved in report.moved if Kind.STEP in moved.kinds),
        prompt_mb=sum(2e-6 * _row_elements(moved.shape) for moved in report.moved if Kind.STEP not in moved.kinds),
        kept=len(report.kept),
        seconds=time.process_time() - start,
        peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
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


def main() -> int:
    """Prints and writes the table; 1 if a share is above its mark."""
    rows = []
    for name, shape in SHAPES.items():
        rows.append(measured(name, shape))
        print(f"{name}: {rows[-1].share:.1%} of {rows[-1].parameters} parameters stay in the loop", flush=True)
    write_result("hoisting", 0, [asdict(row) for row in rows], "Matrices and kernels that stay in the denoising loop")
    return 0 if all(round(row.share, 3) <= row.mark for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
