"""How long an operation takes on a device: a roofline with the sustained fractions that published measurements show.

    t = max(operations / (peak of the format x e), bytes / (bandwidth x BANDWIDTH))

e depends on the class of GPU and on what multiplies (`Sustained`); peaks are those of `Target.peak_tops`. fp8 counts at its faster rate,
with fp16 accumulation, because the fractions below were found with it. Kernels are taken as launched from one recorded graph: no time of
its own per launch. What an operation reads and writes is the caller's to say (`exporter/latency.py` reads it off a graph).

How far to trust it: benchmarks/estimator.py compares it with 40 published times of images and videos. Fitted to 26 of them, it misses the
14 others by 9 % in the median and 24 % at the 90th percentile; the fractions here are fitted to all. The worst, 35 %, is FLUX.1-dev in fp8
on an H100, for which two sources differ by as much. Small models in eager PyTorch take longer than estimated (SDXL on an A100 by a
quarter): their time goes into launches and host code.

Nothing is published for diffusion transformers on a Jetson. Orin's fractions rest on one MLPerf result (SDXL in 9.94 s on AGX Orin), Thor's
on prefill of language models: their estimates may be wrong by a factor of 2. What stands as assumed was not measured on that class.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from dexport.errors import UserError
from dexport.targets.formats import Support
from dexport.targets.source import Source
from dexport.targets.target import Target

BANDWIDTH = 0.8
"""Sustained part of the memory's bandwidth."""
_FP32 = 0.7
"""Sustained part of the peak without tensor cores; assumed."""
_HEAD_STEP, _FULL_HEAD, _SMALL_HEAD = 32, 128, 0.85
"""Fused attention kernels fill heads up to a multiple of 32 and lose up to 15 % below 128 (SageAttention's charts)."""

Kind = Literal["product", "attention", "traffic"]
_EIGHT, _FOUR = ("int8", "fp8"), ("int4", "nvfp4")


@dataclass(frozen=True)
class Work:
    """One operation.

    Attributes:
        name: of the operation, for tables.
        kind: a product with a weight, the products of an attention, or anything that only moves data.
        operations: 2 per multiply-add.
        bytes: read from and written to memory.
        format: what is multiplied, one of `targets.formats.FORMATS`.
    """

    name: str
    kind: Kind
    operations: float
    bytes: float
    format: str = "fp16"


@dataclass(frozen=True)
class Sustained:
    """Which part of its peak a class of GPU keeps up.

    Attributes:
        half: products of 16-bit numbers, of the fp16 peak.
        eight: of int8 or fp8, of that format's peak.
        four: of int4 or fp4.
        attention: fused attention in 16 bits, of the fp16 peak.
        source: where they come from.
    """

    half: float
    eight: float
    four: float
    attention: float
    source: Source


_TABLE = "fitted by benchmarks/estimator.py to"
_GEFORCE = Source(f"{_TABLE} FLUX.1, FLUX.2 and Wan timings; attention: also SageAttention's charts of FlashAttention 2", "computed")
_ADA_PRO = Source(f"{_TABLE} bf16 and fp8 timings of FLUX.1 on an RTX 6000 Ada; 4 bits assumed, attention as the A6000's", "computed")
_A100 = Source(f"{_TABLE} CogVideoX, HunyuanVideo, PixArt and Wan timings; attention: also SageAttention's charts", "computed")
_H100 = Source(f"{_TABLE} CogVideoX, FLUX.1 and Wan timings; attention: also charts of FlashAttention 3", "computed")
_GB10 = Source(f"{_TABLE} bf16 and nvfp4 timings of Z-Image-Turbo; 8 bits assumed, attention: also NVIDIA dgx-spark-playbooks", "computed")
_MLPERF = Source(f"{_TABLE} MLPerf Inference 4.1, SDXL in int8 on AGX Orin; all but int8 assumed", "computed")
_PREFILL = Source("TensorRT-Edge-LLM 0.4.0, prefill on a T5000; attention assumed", "computed")


def _assumed(like: str) -> Source:
    return Source(f"assumed to be as {like}", "memory")


SUSTAINED = {
    "Volta integrated (Xavier)": Sustained(0.60, 0.40, 0.35, 0.50, _assumed("Orin")),
    "Turing GeForce": Sustained(0.85, 0.60, 0.60, 0.90, _assumed("Ampere GeForce")),
    "Ampere data centre": Sustained(0.40, 0.35, 0.50, 0.70, _A100),
    "Ampere GeForce": Sustained(0.85, 0.60, 0.60, 1.00, _GEFORCE),
    "Ampere workstation": Sustained(0.70, 0.60, 0.60, 0.73, Source("attention: SageAttention's charts; linears assumed", "computed")),
    "Ampere integrated (Orin)": Sustained(0.70, 0.49, 0.50, 0.50, _MLPERF),
    "Ada GeForce": Sustained(0.84, 0.61, 0.64, 0.97, _GEFORCE),
    "Ada workstation": Sustained(0.52, 0.34, 0.50, 0.73, _ADA_PRO),
    "Hopper": Sustained(0.60, 0.56, 0.50, 0.34, _H100),
    "Blackwell data centre": Sustained(0.60, 0.60, 0.60, 0.45, _assumed("Hopper")),
    "Blackwell integrated (Thor)": Sustained(0.40, 0.30, 0.20, 0.35, _PREFILL),
    "Blackwell GeForce": Sustained(0.84, 0.50, 0.40, 1.00, _GEFORCE),
    "Blackwell workstation": Sustained(0.80, 0.50, 0.61, 0.67, _GB10),
}
"""Name of the rates of a class (targets/rates.py) -> what it keeps up."""


def estimable(target: Target) -> Support:
    """Whether latencies of a target can be estimated, with the reason."""
    if target.rates is None:
        return Support(False, "its speed depends on the machine at hand")
    return Support(True, SUSTAINED[target.rates.name].source.text)


def require_estimable(target: Target, what: str) -> None:
    """Refuses what needs estimates on a target without them.

    Raises:
        UserError: with the reason.
    """
    answer = estimable(target)
    if not answer:
        fix = "drop it, or choose a target with known rates, such as rtx-4090 or jetson-orin"
        raise UserError(what, expected="a device whose speed is known", got=f"{target.id}: {answer.reason}", fix=fix)


def milliseconds(work: Work, target: Target) -> float:
    """Time of one operation.

    Raises:
        UserError: the target's rates are not known, or it cannot multiply numbers of the format.
    """
    require_estimable(target, "latency")
    assert target.bandwidth_gb_s is not None
    moving = work.bytes / (target.bandwidth_gb_s * 1e6 * BANDWIDTH)
    if work.kind == "traffic":
        return moving
    return max(work.operations / (sustained_tops(target, work.format, work.kind) * 1e9), moving)


def total(works: Iterable[Work], target: Target) -> float:
    """Milliseconds of operations in turn."""
    return math.fsum(milliseconds(work, target) for work in works)


def sustained_tops(target: Target, format: str, kind: Kind) -> float:
    """What the device keeps up, in 1e12 operations per second.

    Raises:
        UserError: it cannot multiply numbers of the format.
    """
    assert target.rates is not None
    if format == "int4" and not target.rates.int4:
        format = "int8"  # as which the kernels of plugins/lowrank_linear multiply 4 bits there
    fractions = SUSTAINED[target.rates.name]
    if kind == "attention" and format in ("fp16", "bf16"):
        fraction = fractions.attention
    elif format in _EIGHT:
        fraction = fractions.eight
    elif format in _FOUR:
        fraction = fractions.four
    else:
        fraction = _FP32 if format == "fp32" else fractions.half
    peak = target.peak_tops(format, fast=format == "fp8")
    if not peak:
        raise UserError(target.id, expected="a format that its hardware multiplies", got=format, fix="choose another precision or recipe")
    return peak * fraction


def attention_operations(queries: int, keys: int, heads: int, size: int) -> float:
    """Operations of both products of one attention, as much as kernels really do: heads of `size` are filled up."""
    filled = -(-size // _HEAD_STEP) * _HEAD_STEP
    return 4.0 * queries * keys * heads * filled / (1.0 if filled >= _FULL_HEAD else _SMALL_HEAD)
