"""What a report says, as one frozen value of plain numbers, names and pictures. The page and the JSON are two views of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from dexport.exporter.quality import Quality, picture_psnr, picture_ssim, quality_to_json

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The same prompt and seed twice: pictures uint8 [H, W, 3], or videos uint8 [F, H, W, 3]; PSNR in dB."""

    prompt: str
    seed: int
    reference: Array
    candidate: Array
    psnr: float
    ssim: float


@dataclass(frozen=True, kw_only=True)
class SiteBits:
    """How one site is stored and computed.

    Attributes:
        weights: format of the weights, such as "int8"; "fp16" for a site that is kept.
        weight_bits: bits per weight, scales included.
        activations: format of the activations, empty where they are not quantized.
        mode: where their scales come from ("static", "table", "dynamic"), empty without.
        parameters: number of weights.
    """

    weights: str
    weight_bits: float
    activations: str = ""
    mode: str = ""
    parameters: int

    @property
    def label(self) -> str:
        """What a legend calls it."""
        if not self.activations:
            return f"{self.weights} weights" if self.weight_bits < 16 else f"kept in {self.weights}"
        return f"{self.weights} weights, {self.activations} activations" + (f" ({self.mode})" if self.mode else "")


@dataclass(frozen=True)
class Remark:
    """A site that was not treated as the recipe says, and why; `site` may be empty for a whole component."""

    component: str
    site: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """How much each site's quantization costs.

    Attributes:
        metric: what was measured, in words, such as "output error, relative".
        sites: site -> one value per range of the schedule; larger is more sensitive.
        ranges: names of the ranges, such as ("steps 0-9", "steps 10-19").
    """

    metric: str
    sites: Mapping[str, tuple[float, ...]]
    ranges: tuple[str, ...] = ("all steps",)


@dataclass(frozen=True)
class ByteChange:
    """Weights of one component in bytes, in the reference and in the candidate."""

    before: int
    after: int


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """Everything that a report may show. What is empty or None has no section.

    Attributes:
        title: of the page.
        reference, candidate: what is compared with what, in a few words each.
        created: date and time.
        notes: sentences that a reader must see first, such as why pictures were not compared.
        pairs: all pairs that were compared; the page shows some of them.
        bit_map: component -> site, in the order of the graph -> bits.
        sensitivity: by component.
        skipped: sites that a pass left alone.
        degraded: sites that got something else than the recipe says.
        weight_bytes: by component.
        kernels: component -> kind of kernel, such as "GEMM int8" -> how many, as the compiler chose them.
        latency_ms: estimated time of one picture by component, in milliseconds.
        command: what to type to get this again.
        settings: options by name, plain JSON.
        versions: package -> version.
    """

    title: str
    reference: str
    candidate: str
    created: str
    notes: tuple[str, ...] = ()
    quality: Quality | None = None
    pairs: tuple[Pair, ...] = ()
    bit_map: Mapping[str, Mapping[str, SiteBits]] = field(default_factory=dict)
    sensitivity: Mapping[str, Sensitivity] = field(default_factory=dict)
    skipped: tuple[Remark, ...] = ()
    degraded: tuple[Remark, ...] = ()
    weight_bytes: Mapping[str, ByteChange] = field(default_factory=dict)
    kernels: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    latency_ms: Mapping[str, float] = field(default_factory=dict)
    command: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


def pairs_of(prompts: list[str], seeds: list[int], reference: Array, candidate: Array) -> tuple[Pair, ...]:
    """Pairs from two runs: pictures uint8 [n, H, W, 3] (or videos) each; raises UserError for different shapes."""
    found = zip(prompts, seeds, reference, candidate, picture_psnr(reference, candidate), picture_ssim(reference, candidate), strict=True)
    return tuple(Pair(prompt=p, seed=s, reference=a, candidate=b, psnr=float(d), ssim=float(e)) for p, s, a, b, d, e in found)


def average_bits(sites: Mapping[str, SiteBits]) -> float:
    """Bits per weight over all sites, scales included; 0 without sites."""
    parameters = sum(site.parameters for site in sites.values())
    return sum(site.weight_bits * site.parameters for site in sites.values()) / parameters if parameters else 0.0


def report_to_json(data: ReportData) -> dict[str, Any]:
    """The data as plain JSON, without the pixels."""
    plain = {f.name: getattr(data, f.name) for f in dataclasses.fields(data) if f.name not in ("quality", "pairs")}
    document: dict[str, Any] = _plain(plain)
    document["quality"] = None if data.quality is None else quality_to_json(data.quality)
    document["pairs"] = [{"prompt": p.prompt, "seed": p.seed, "psnr": p.psnr, "ssim": p.ssim} for p in data.pairs]
    document["average_bits"] = {component: average_bits(sites) for component, sites in data.bit_map.items()}
    return document


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value
