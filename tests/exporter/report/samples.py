"""Report data with something in every section."""

from __future__ import annotations

from typing import Any

import numpy as np

from dexport.exporter.quality import measure
from dexport.exporter.report.data import ByteChange, Pair, Remark, ReportData, Sensitivity, SiteBits, pairs_of

LAYERS = ("attn1.to_q", "attn1.to_out.0", "ff.net.0.proj", "ff.net.2")
BLOCKS = 28


def pictures(count: int, *shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape, 3)).astype(np.uint8)


def noisy(clean: np.ndarray[Any, Any], levels: float) -> np.ndarray[Any, Any]:
    noise = np.random.default_rng(1).normal(0, levels, clean.shape)
    return np.clip(clean + noise, 0, 255).astype(np.uint8)


def pairs(count: int, *shape: int, levels: float = 3) -> tuple[Pair, ...]:
    """The more noise the later."""
    clean = pictures(count, *shape)
    candidate = np.stack([noisy(picture, levels * (i + 1) / count) for i, picture in enumerate(clean)])
    return pairs_of([f"a prompt with number {i}" for i in range(count)], list(range(count)), clean, candidate)


def sites() -> dict[str, SiteBits]:
    found = {}
    for block in range(BLOCKS):
        for layer in LAYERS:
            weights, bits = ("int8", 8.03) if layer.startswith("ff") else ("int4", 4.25)
            mode = "dynamic" if block % 5 else "table"
            name = f"transformer_blocks.{block}.{layer}"
            found[name] = SiteBits(weights=weights, weight_bits=bits, activations="int8", mode=mode, parameters=1000)
    found["proj_out"] = SiteBits(weights="fp16", weight_bits=16, parameters=500)
    return found


def full() -> ReportData:
    shown = pairs(10, 16, 24)
    reference, candidate = (np.stack([getattr(pair, side) for pair in shown]) for side in ("reference", "candidate"))
    latents = np.random.default_rng(2).standard_normal((20, 10, 4, 2, 3)).astype(np.float32)
    drifted = latents + np.linspace(0.01, 0.2, 20, dtype=np.float32)[:, None, None, None, None]
    bits = sites()
    return ReportData(
        title="tiny-w4a8-mixed",
        reference="the pipeline in PyTorch",
        candidate="w4a8-mixed for cpu",
        created="2030-01-01 12:00 UTC",
        notes=("Two layers were kept in 16 bit to repair black pictures.",),
        quality=measure(reference, candidate, (latents, drifted), (np.linspace(0.5, 1, 12), np.linspace(0.4, 1, 12))),
        pairs=shown,
        bit_map={"denoiser": bits, "text_encoder": {"encoder.block.0.layer.0.SelfAttention.q": bits["proj_out"]}},
        sensitivity={
            "denoiser": Sensitivity(
                metric="Relative output error, one layer at a time",
                sites={name: (0.001 * i, 0.1 / (i + 1)) for i, name in enumerate(bits)},
                ranges=("steps 1-10", "steps 11-20"),
            )
        },
        skipped=tuple(Remark("denoiser", f"transformer_blocks.{i}.attn2.to_k", "runs once per prompt") for i in range(BLOCKS)),
        degraded=(Remark("vae_decoder", "", "this target has no 8-bit convolutions: 16 bit"),),
        weight_bytes={"text_encoder": ByteChange(9_500_000_000, 2_400_000_000), "denoiser": ByteChange(1_200_000_000, 330_000_000)},
        kernels={"denoiser": {"GEMM int8": 224, "fused attention fp16": 56}},
        latency_ms={"text_encoder": 38.25, "denoiser": 1210.0},
        command="dexport build a-model --target cpu --recipe w4a8-mixed -o " + "long-name-" * 12 + ".dxb",
        settings={"steps": 20, "guidance": 4.0, "seeds": [0, 1, 2], "loras": [], "golden": True},
        versions={"dexport": "0.1.0", "torch": "2.13.0"},
    )
